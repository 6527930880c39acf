//! Paths inside a partition: absolute and plain, so that two of them can be compared.

use std::fmt;
use std::path::{Component, Path};

/// Longest path in bytes (Linux's PATH_MAX, without its NUL).
const MAX_PATH: usize = 4095;
/// Longest name of one component in bytes (Linux's NAME_MAX).
const MAX_NAME: usize = 255;

/// An absolute path without `.`, `..`, empty components or NUL bytes. `/` itself is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPath(String);

impl GuestPath {
    /// Checks `text`; doubled and trailing slashes are dropped.
    ///
    /// # Errors
    /// What is wrong, for the end of a sentence.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("it is not absolute");
        }
        if text.contains('\0') {
            return Err("it contains a NUL byte");
        }
        if text.split('/').any(|name| name == ".." || name == ".") {
            return Err("it contains `.` or `..`");
        }
        Self::checked(text)
    }

    /// The path that `text` names for a process whose working directory is `/`: `..` at the top
    /// stays at the top.
    ///
    /// # Errors
    /// What is wrong, for the end of a sentence.
    pub fn from_root(text: &Path) -> Result<Self, &'static str> {
        let mut names: Vec<&str> = Vec::new();
        for component in text.components() {
            match component {
                Component::Normal(name) => {
                    names.push(name.to_str().ok_or("it is not UTF-8")?);
                }
                Component::ParentDir => {
                    names.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Self::new(&format!("/{}", names.join("/")))
    }

    fn checked(text: &str) -> Result<Self, &'static str> {
        let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty()).collect();
        if names.iter().any(|name| name.len() > MAX_NAME) {
            return Err("a name in it is longer than 255 bytes");
        }
        let path = format!("/{}", names.join("/"));
        if path.len() > MAX_PATH {
            return Err("it is longer than 4095 bytes");
        }
        Ok(Self(path))
    }

    /// The path as text, starting with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path below `/`, as an archive names it: `bin/hello`; empty for `/`.
    pub fn below_root(&self) -> &str {
        self.0.trim_start_matches('/')
    }

    /// True when `self` is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        Path::new(&self.0).starts_with(&other.0)
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_plain_absolute_paths_only() {
        for (text, path) in [
            ("/", Some("/")),
            ("/bin/hello", Some("/bin/hello")),
            ("//bin///hello/", Some("/bin/hello")),
            ("/...", Some("/...")),
            ("", None),
            ("bin/hello", None),
            ("./x", None),
            ("/a/../b", None),
            ("/a/./b", None),
            ("/a\0b", None),
        ] {
            let parsed = GuestPath::new(text);
            assert_eq!(
                parsed.as_ref().ok().map(GuestPath::as_str),
                path,
                "{text:?}"
            );
        }
        assert!(GuestPath::new(&format!("/{}", "x".repeat(256))).is_err());
        assert!(GuestPath::new(&"/x".repeat(3000)).is_err());
    }

    #[test]
    fn relative_paths_start_at_the_root_and_never_leave_it() {
        for (text, path) in [
            ("./hello", "/hello"),
            ("target/debug/hello", "/target/debug/hello"),
            ("../../hello", "/hello"),
            ("a/../b", "/b"),
            ("/bin/x", "/bin/x"),
            ("", "/"),
        ] {
            assert_eq!(
                GuestPath::from_root(Path::new(text)).unwrap().as_str(),
                path,
                "{text}"
            );
        }
    }

    #[test]
    fn within_compares_whole_components() {
        let at = |text| GuestPath::new(text).unwrap();
        assert!(at("/a/b").is_within(&at("/a")));
        assert!(at("/a").is_within(&at("/a")));
        assert!(at("/a").is_within(&at("/")));
        assert!(!at("/ab").is_within(&at("/a")));
        assert!(!at("/a").is_within(&at("/a/b")));
    }
}
