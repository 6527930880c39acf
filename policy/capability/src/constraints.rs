//! What narrows the use of a grant beyond its object: requests, time, amounts, a person's consent.

use crate::name::CapabilityName;
use bulkhead_network::http::{HttpRule, Method, PathPattern};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Everything that narrows a grant. The default narrows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Only web requests, and of those only these; absent: any bytes. Of `net.connect` over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRule>,
    /// Only calls whose paths are these or lie below them; absent: any path, empty: calls without
    /// a path. Absolute, without `.` and `..`. Of `tool.call`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<Vec<PathBuf>>,
    /// Seconds since 1970 (UTC) from which on the grant is void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Seconds after the partition's start from which on the grant is void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
    /// Amounts that its use is counted against, each by the grant that it was written on. Grants
    /// that name the same one share it; each partition counts for itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quotas: BTreeMap<String, Quota>,
    /// Each use takes a person's consent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
}

/// How much may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Calls, requests or connections in any minute; absent: not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls_per_minute: Option<u64>,
    /// Bytes both ways together while the partition lives; absent: not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The smaller of two limits, where absent is none.
fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// True when `a` limits as much as `b`, or more.
fn within<T: Ord>(a: Option<T>, b: Option<T>) -> bool {
    match (a, b) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(a), Some(b)) => a <= b,
    }
}

impl Quota {
    /// The smaller amounts of the two.
    pub fn smaller(self, other: Self) -> Self {
        Self {
            calls_per_minute: smaller(self.calls_per_minute, other.calls_per_minute),
            bytes: smaller(self.bytes, other.bytes),
        }
    }

    /// True when it allows no more than `other`.
    pub fn is_narrower_or_equal(self, other: Self) -> bool {
        within(self.calls_per_minute, other.calls_per_minute) && within(self.bytes, other.bytes)
    }
}

impl Constraints {
    /// True when nothing is narrowed.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The amounts that hold when all quotas do.
    pub fn quota(&self) -> Quota {
        let all = self.quotas.values().copied();
        all.fold(Quota::default(), Quota::smaller)
    }

    /// True when the grant is void at `now` (since 1970), in a partition that `age` ago started.
    pub fn is_over(&self, now: Duration, age: Duration) -> bool {
        let reached =
            |limit: Option<u64>, time: Duration| limit.is_some_and(|l| time.as_secs() >= l);
        reached(self.expires, now) || reached(self.lifetime, age)
    }

    /// True when every use that `self` lets through `other` lets through too.
    pub fn is_narrower_or_equal(&self, other: &Self) -> bool {
        let http = match (&self.http, &other.http) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(a), Some(b)) => http_is_narrower_or_equal(a, b),
        };
        let below = match (&self.below, &other.below) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(a), Some(b)) => (a.iter()).all(|a| b.iter().any(|b| a.starts_with(b))),
        };
        let own = self.quota();
        let quota = |(name, wider): (&String, &Quota)| {
            let same = self.quotas.get(name);
            same.is_some_and(|same| same.is_narrower_or_equal(*wider))
                || own.is_narrower_or_equal(*wider)
        };
        http && below
            && within(self.expires, other.expires)
            && within(self.lifetime, other.lifetime)
            && other.quotas.iter().all(quota)
            && (self.approval || !other.approval)
    }

    /// What both let through; `None` if that is nothing.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let http = match (&self.http, &other.http) {
            (Some(a), Some(b)) => Some(intersect_http(a, b)?),
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        let below = match (&self.below, &other.below) {
            (Some(a), Some(b)) => Some(intersect_directories(a, b)),
            (a, b) => a.as_ref().or(b.as_ref()).cloned(),
        };
        let mut quotas = self.quotas.clone();
        for (name, quota) in &other.quotas {
            let entry = quotas.entry(name.clone()).or_insert(*quota);
            *entry = entry.smaller(*quota);
        }
        Some(Self {
            http,
            below,
            expires: smaller(self.expires, other.expires),
            lifetime: smaller(self.lifetime, other.lifetime),
            quotas,
            approval: self.approval || other.approval,
        })
    }

    /// The first constraint that means nothing to a grant of `name`, by its key in a manifest.
    pub fn unfitting(&self, name: CapabilityName) -> Option<&'static str> {
        let quota = self.quota();
        let written = [
            ("methods", self.http.is_some()),
            ("below", self.below.is_some()),
            ("expires", self.expires.is_some()),
            ("lifetime", self.lifetime.is_some()),
            ("calls", quota.calls_per_minute.is_some()),
            ("bytes", quota.bytes.is_some()),
            ("approval", self.approval),
        ];
        let means_nothing =
            |(key, written): &(&str, bool)| *written && !name.constraints().contains(key);
        written.into_iter().find(means_nothing).map(|(key, _)| key)
    }
}

/// A rule of web requests with its lists as they are compared: sorted, each entry once, and none
/// that another of the list includes.
pub fn http_rule(methods: Vec<Method>, paths: Vec<PathPattern>) -> HttpRule {
    let mut methods = methods;
    methods.sort();
    methods.dedup();
    HttpRule {
        methods,
        paths: widest(paths, PathPattern::is_narrower_or_equal),
    }
}

/// A directory as `below` takes it: absolute, without `.` and `..`.
pub fn is_plain_directory(path: &Path) -> bool {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    // `components` leaves out `.` in the middle, which compares as if it were not there.
    path.is_absolute() && path.components().all(plain)
}

fn http_is_narrower_or_equal(a: &HttpRule, b: &HttpRule) -> bool {
    let covered = |a: &PathPattern| b.paths.iter().any(|b| a.is_narrower_or_equal(b));
    let methods = b.methods.is_empty()
        || (!a.methods.is_empty() && a.methods.iter().all(|method| b.methods.contains(method)));
    let paths = b.paths.is_empty() || (!a.paths.is_empty() && a.paths.iter().all(covered));
    methods && paths
}

/// An empty list means everything, so lists with nothing in common are no rule at all.
fn intersect_http(a: &HttpRule, b: &HttpRule) -> Option<HttpRule> {
    let methods: Vec<Method> = match (a.methods.is_empty(), b.methods.is_empty()) {
        (true, _) => b.methods.clone(),
        (_, true) => a.methods.clone(),
        _ => {
            let both = a.methods.iter().filter(|method| b.methods.contains(method));
            Some(both.cloned().collect()).filter(|both: &Vec<_>| !both.is_empty())?
        }
    };
    let paths: Vec<PathPattern> = match (a.paths.is_empty(), b.paths.is_empty()) {
        (true, _) => b.paths.clone(),
        (_, true) => a.paths.clone(),
        _ => {
            let pairs = (a.paths.iter()).flat_map(|a| b.paths.iter().map(move |b| a.intersect(b)));
            Some(pairs.flatten().collect()).filter(|both: &Vec<_>| !both.is_empty())?
        }
    };
    Some(http_rule(methods, paths))
}

fn intersect_directories(a: &[PathBuf], b: &[PathBuf]) -> Vec<PathBuf> {
    let deeper = |a: &PathBuf, b: &PathBuf| match (a.starts_with(b), b.starts_with(a)) {
        (true, _) => Some(a.clone()),
        (_, true) => Some(b.clone()),
        _ => None,
    };
    let pairs = (a.iter()).flat_map(|a| b.iter().map(move |b| deeper(a, b)));
    widest(pairs.flatten().collect(), |a, b| a.starts_with(b))
}

/// Sorted, each once, without those that are narrower than another.
fn widest<T: Ord + Clone>(mut all: Vec<T>, is_narrower: impl Fn(&T, &T) -> bool) -> Vec<T> {
    all.sort();
    all.dedup();
    let included = |one: &T| {
        all.iter()
            .any(|other| other != one && is_narrower(one, other))
    };
    all.iter().filter(|one| !included(one)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(methods: &[&str], paths: &[&str]) -> Constraints {
        let methods = methods.iter().map(|method| method.parse().unwrap());
        let paths = paths.iter().map(|path| path.parse().unwrap());
        Constraints {
            http: Some(http_rule(methods.collect(), paths.collect())),
            ..Constraints::default()
        }
    }

    fn below(directories: &[&str]) -> Constraints {
        Constraints {
            below: Some(directories.iter().map(PathBuf::from).collect()),
            ..Constraints::default()
        }
    }

    #[test]
    fn methods_and_paths_meet() {
        let a = rule(&["GET", "POST"], &["/v1/**", "/health"]);
        let b = rule(&["GET", "HEAD"], &["/*/models", "/v1/chat/**"]);
        let both = rule(&["GET"], &["/v1/chat/**", "/v1/models"]);
        assert_eq!(a.intersect(&b), Some(both.clone()));
        assert!(both.is_narrower_or_equal(&a) && both.is_narrower_or_equal(&b));
        assert!(!a.is_narrower_or_equal(&both));
        let any = rule(&[], &[]);
        assert_eq!(a.intersect(&any), Some(a.clone()));
        assert!(a.is_narrower_or_equal(&any) && any.is_narrower_or_equal(&Constraints::default()));
        assert!(!Constraints::default().is_narrower_or_equal(&any));
    }

    #[test]
    fn nothing_in_common_is_nothing_and_not_everything() {
        let get = rule(&["GET"], &[]);
        assert_eq!(get.intersect(&rule(&["POST"], &[])), None);
        assert_eq!(rule(&[], &["/a"]).intersect(&rule(&[], &["/b"])), None);
        let both = below(&["/srv/a"]).intersect(&below(&["/srv/b"])).unwrap();
        assert_eq!(both.below, Some(Vec::new()), "calls without a path");
        assert!(both.is_narrower_or_equal(&below(&["/srv/a"])));
    }

    #[test]
    fn the_deeper_directory_and_the_smaller_amounts() {
        let both = below(&["/srv", "/home/a"]).intersect(&below(&["/srv/a", "/srv/b", "/home"]));
        assert_eq!(both, Some(below(&["/home/a", "/srv/a", "/srv/b"])));
        assert!(!below(&["/srvx"]).is_narrower_or_equal(&below(&["/srv"])));
        let limited = |calls, expires, approval| Constraints {
            quotas: [(
                "x".to_owned(),
                Quota {
                    calls_per_minute: Some(calls),
                    bytes: None,
                },
            )]
            .into(),
            expires,
            approval,
            ..Constraints::default()
        };
        let a = limited(10, None, true);
        let b = limited(20, Some(99), false);
        assert_eq!(a.intersect(&b), Some(limited(10, Some(99), true)));
    }

    #[test]
    fn a_grant_ends_when_either_time_is_up() {
        let seconds = Duration::from_secs;
        let both = Constraints {
            expires: Some(1000),
            lifetime: Some(60),
            ..Constraints::default()
        };
        assert!(!both.is_over(seconds(999), seconds(59)));
        assert!(both.is_over(seconds(1000), seconds(0)));
        assert!(both.is_over(seconds(0), seconds(60)));
        assert!(!Constraints::default().is_over(Duration::MAX, Duration::MAX));
    }

    #[test]
    fn directories_are_absolute_and_plain() {
        for (path, plain) in [
            ("/", true),
            ("/srv/a", true),
            ("srv", false),
            ("/srv/../etc", false),
            ("", false),
        ] {
            assert_eq!(is_plain_directory(Path::new(path)), plain, "{path}");
        }
    }
}
