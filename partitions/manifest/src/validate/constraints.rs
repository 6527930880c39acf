//! What narrows a grant beyond its object: requests, directories, time, amounts, consent.

use super::options::Options;
use crate::diagnostic::Code;
use crate::draft::{At, GrantDraft};
use crate::size::{parse_bytes, parse_call_rate, parse_seconds, parse_time};
use bulkhead_capability::{Capability, Constraints, Grant, Quota, http_rule};
use std::path::PathBuf;
use std::str::FromStr;

impl Options<'_> {
    /// `capability` as this draft narrows it.
    pub(super) fn constrained(
        &mut self,
        capability: Capability,
        draft: &GrantDraft,
    ) -> Option<Grant> {
        let calls = (
            "calls",
            &draft.calls,
            parse_call_rate as fn(&str) -> _,
            "60/min",
        );
        let quota = Quota {
            calls_per_minute: self.amount(calls)?,
            bytes: self.amount(("bytes", &draft.bytes, parse_bytes, "100MiB"))?,
        };
        let mut constraints = Constraints {
            expires: self.amount((
                "expires",
                &draft.expires,
                parse_time,
                "2026-12-31T18:00:00Z",
            ))?,
            lifetime: self.amount(("lifetime", &draft.lifetime, parse_seconds, "8h"))?,
            approval: draft
                .approval
                .as_ref()
                .is_some_and(|approval| approval.value),
            ..Constraints::default()
        };
        if quota != Quota::default() {
            constraints.quotas.insert(capability.to_string(), quota);
        }
        if draft.methods.is_some() || draft.paths.is_some() {
            let methods = self.each("methods", draft.methods.as_ref())?;
            let paths = self.each("paths", draft.paths.as_ref())?;
            constraints.http = Some(http_rule(methods, paths));
        }
        if let Some(below) = &draft.below {
            constraints.below = Some(below.value.iter().map(PathBuf::from).collect());
        }
        match Grant::new(capability, constraints) {
            Ok(grant) => Some(grant),
            Err(error) => {
                let at = [
                    draft.below.as_ref(),
                    draft.methods.as_ref(),
                    draft.paths.as_ref(),
                ];
                let span = at.into_iter().flatten().find_map(|at| at.span.clone());
                let help = "docs/capabilities.md has the constraints of each grant".to_owned();
                self.refuse(Code::Grant, span, error.to_string(), help);
                None
            }
        }
    }

    /// The elements of a list, none for an absent one; an empty one would allow everything.
    fn each<T: FromStr>(&mut self, key: &str, list: Option<&At<Vec<String>>>) -> Option<Vec<T>>
    where
        T::Err: std::fmt::Display,
    {
        let Some(list) = list else {
            return Some(Vec::new());
        };
        let help = "docs/capabilities.md has the constraints of each grant".to_owned();
        if list.value.is_empty() {
            let message = format!("`{key}` is empty");
            let help = "leave it out to allow all of them".to_owned();
            self.refuse(Code::Grant, list.span.clone(), message, help);
            return None;
        }
        let parsed: Result<Vec<T>, T::Err> = list.value.iter().map(|text| text.parse()).collect();
        match parsed {
            Ok(elements) => Some(elements),
            Err(error) => {
                self.refuse(Code::Grant, list.span.clone(), error.to_string(), help);
                None
            }
        }
    }
}
