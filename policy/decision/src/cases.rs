//! A file of cases: acts, and what policy is expected to say of each. `bulkhead policy test` runs it.

use crate::act::{ActDraft, ParseActError};
use bulkhead_capability::table::Verdict;
use bulkhead_conditions::Act;
use serde::Deserialize;
use std::path::PathBuf;

/// Longest file of cases in bytes.
const MAX_BYTES: usize = 1024 * 1024;

/// A file of cases, in TOML.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// The manifest, from the directory of this file.
    pub manifest: PathBuf,
    /// The partition that acts, where the manifest has more than one and a case does not say.
    #[serde(default)]
    pub partition: Option<String>,
    /// The cases.
    #[serde(default, rename = "case")]
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What people call it; else the act itself.
    #[serde(default)]
    pub name: Option<String>,
    /// Who acts.
    #[serde(default)]
    pub partition: Option<String>,
    /// Seconds since 1970; else 0.
    #[serde(default)]
    pub time: u64,
    /// Seconds since the partition's start.
    #[serde(default)]
    pub age: u64,
    /// Bytes that the act announces.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// What policy is expected to say; a test takes it, learning does without.
    #[serde(default)]
    pub expect: Option<Expected>,
    /// The act.
    pub act: ActDraft,
}

/// A verdict as a case has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// It may be done.
    Allow,
    /// If a person consents.
    Ask,
    /// It may not.
    Deny,
}

impl Expected {
    /// The same in the words of a table.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allowed,
            Self::Ask => Verdict::Ask,
            Self::Deny => Verdict::Denied,
        }
    }
}

/// Why a file is none of cases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseFileError {
    /// It is too long.
    #[error("the file of cases is {0} bytes long; {MAX_BYTES} are possible")]
    TooLong(usize),
    /// It is not of the form.
    #[error("the file of cases is malformed: {0}")]
    Form(String),
    /// It tests nothing.
    #[error("the file has no cases")]
    Empty,
    /// A case has no act.
    #[error("case {number}: {source}")]
    Act {
        /// Which, from 1.
        number: usize,
        /// Why.
        source: ParseActError,
    },
}

impl CaseFile {
    /// Reads a file of cases; an act is checked too.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str) -> Result<(Self, Vec<Act>), CaseFileError> {
        if text.len() > MAX_BYTES {
            return Err(CaseFileError::TooLong(text.len()));
        }
        let file: Self = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| text.get(..span.start).unwrap_or(text));
            let line = line.map_or(1, |before| before.matches('\n').count() + 1);
            CaseFileError::Form(format!("line {line}: {}", error.message()))
        })?;
        if file.cases.is_empty() {
            return Err(CaseFileError::Empty);
        }
        let acts = file.cases.iter().enumerate().map(|(at, case)| {
            let number = at + 1;
            let act = Act::try_from(case.act.clone());
            act.map_err(|source| CaseFileError::Act { number, source })
        });
        let acts = acts.collect::<Result<_, _>>()?;
        Ok((file, acts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_cases() {
        let text = r#"
            manifest = "system.toml"
            [[case]]
            name = "reads"
            expect = "allow"
            act = { net = "a.org:443", method = "GET", path = "/v1/x" }
            [[case]]
            act = { tool = "fs.read", paths = ["/srv/a"] }
        "#;
        let (file, acts) = CaseFile::parse(text).unwrap();
        assert_eq!(file.cases[0].expect, Some(Expected::Allow));
        assert_eq!(
            acts[0].request().to_string(),
            "net.connect tcp:a.org:443 GET /v1/x"
        );
        assert_eq!(acts[1].request().to_string(), "tool.call fs.read /srv/a");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let file =
            |cases: &str| CaseFile::parse(&format!("manifest = \"s\"\n{cases}")).unwrap_err();
        assert_eq!(file(""), CaseFileError::Empty);
        for (cases, says) in [
            ("[[case]]\nact = { tol = \"x\" }", "line 3"),
            (
                "[[case]]\nexpect = \"maybe\"\nact = { tool = \"x\" }",
                "line 3",
            ),
            (
                "[[case]]\nexpected = \"allow\"\nact = { tool = \"x\" }",
                "line 3",
            ),
            (
                "[[case]]\nact = { tool = \"x\" }\n[[case]]\nact = { }",
                "case 2: an act is exactly one",
            ),
            ("x = ", "line 2"),
        ] {
            let error = file(cases).to_string();
            assert!(error.contains(says), "{cases}: {error}");
        }
        let long = "#".repeat(MAX_BYTES + 1);
        assert_eq!(
            CaseFile::parse(&long),
            Err(CaseFileError::TooLong(MAX_BYTES + 1))
        );
    }
}
