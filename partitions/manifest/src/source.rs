//! Where a partition's files come from: the library directory (`@name`) or the host.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// A file or directory named in a manifest, not yet opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `@name`: below the library directory; plain relative path.
    Library(PathBuf),
    /// A path of the host, relative ones already joined to the manifest's directory.
    Host(PathBuf),
}

impl Source {
    /// Reads `text` as written; relative host paths start at `base`.
    ///
    /// # Errors
    /// What is wrong, for the end of a sentence.
    pub fn new(text: &str, base: &Path) -> Result<Self, &'static str> {
        if text.contains('\0') {
            return Err("it contains a NUL byte");
        }
        let Some(name) = text.strip_prefix('@') else {
            return match text {
                "" => Err("it is empty"),
                _ => Ok(Self::Host(base.join(text))),
            };
        };
        let name = Path::new(name);
        let plain = name
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if name.as_os_str().is_empty() || !plain {
            return Err("a name in the library is a relative path without `..`");
        }
        Ok(Self::Library(name.to_owned()))
    }

    /// The path on this host, with the library directory at `library`.
    pub fn resolve(&self, library: &Path) -> PathBuf {
        match self {
            Self::Library(name) => library.join(name),
            Self::Host(path) => path.clone(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(name) => write!(f, "@{}", name.display()),
            Self::Host(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_names_stay_in_the_library() {
        let base = Path::new("/srv/demo");
        for (text, resolved) in [
            ("@kernel", Some("/lib/bulkhead/kernel")),
            ("@linux/vmlinuz", Some("/lib/bulkhead/linux/vmlinuz")),
            ("disk.img", Some("/srv/demo/disk.img")),
            ("../disk.img", Some("/srv/demo/../disk.img")),
            ("/abs", Some("/abs")),
            ("@", None),
            ("@../secret", None),
            ("@/etc/shadow", None),
            ("@linux/../../x", None),
            ("", None),
            ("a\0b", None),
        ] {
            let source = Source::new(text, base);
            let path = source.map(|source| source.resolve(Path::new("/lib/bulkhead")));
            assert_eq!(path.ok(), resolved.map(PathBuf::from), "{text:?}");
        }
    }
}
