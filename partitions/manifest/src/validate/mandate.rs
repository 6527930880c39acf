//! The rules of a mandate: identity, lifetime, secrets, tools, what may be started, budget.

use super::{Sink, check_name};
use crate::diagnostic::Code;
use crate::draft::{
    At, BudgetDraft, LifetimeDraft, MandateDraft, SecretDraft, SpawnDraft, ToolsDraft,
};
use crate::mandate::{Budget, Lifetime, Mandate, SecretBinding, SpawnBudget};
use crate::size::{parse_bytes, parse_money, parse_seconds};
use bulkhead_capability::{Capability, Grants, is_plain_name};
use bulkhead_network::{Host, Ports, Protocol, Rule};
use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::path::Path;

/// Longest name of an owner in bytes.
const MAX_OWNER: usize = 100;
/// Most partitions that one may start.
const MAX_COUNT: i64 = 256;
/// Most generations below a partition.
const MAX_DEPTH: i64 = 8;
/// Longest name of a header or of an environment variable in bytes.
const MAX_WORD: usize = 64;
/// Largest number that JSON says exactly.
const MAX_NUMBER: i64 = (1 << 53) - 1;
/// Headers that say how a request is read: a secret in one of them would change more than itself.
const FRAMING_HEADERS: [&str; 8] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Checks the mandate of a partition that has `grants`; `span` is the manifest as a whole.
pub(super) fn check(
    draft: &At<MandateDraft>,
    span: Option<Range<usize>>,
    grants: Option<&Grants>,
    base: &Path,
    refuse: &mut Sink<'_>,
) -> Option<Mandate> {
    let At { value: draft, .. } = draft;
    let mut check = Terms::new(refuse, span);
    let role = check.role(draft.role.as_ref());
    let owner = check.owner(draft.owner.as_ref());
    let parent = match &draft.parent {
        Some(parent) => check_name("a parent", Some(parent), None, check.refuse).map(Some),
        None => Some(None),
    };
    let lifetime = check.lifetime(draft.lifetime.as_ref());
    let secrets = check.secrets(&draft.secrets, grants);
    let tool_limits = check.tool_limits(draft.tools.as_ref(), base);
    let spawn = check.spawn(draft.spawn.as_ref());
    let budget = check.budget(draft.budget.as_ref());
    Some(Mandate {
        role: role?,
        owner: owner?,
        parent: parent?,
        lifetime: lifetime?.at_most(draft.left),
        secrets: secrets?,
        tool_limits: tool_limits?,
        spawn: spawn?,
        budget: budget?,
        document: draft.document.clone(),
        lineage: draft.lineage.clone(),
        leads: draft.leads.clone(),
    })
}

/// The rules of single sections, which manifests and roles share.
pub(crate) struct Terms<'c, 's> {
    refuse: &'c mut Sink<'s>,
    /// The manifest as a whole.
    span: Option<Range<usize>>,
}

impl<'c, 's> Terms<'c, 's> {
    /// `span` is the text as a whole.
    pub(crate) fn new(refuse: &'c mut Sink<'s>, span: Option<Range<usize>>) -> Self {
        Self { refuse, span }
    }
}

impl Terms<'_, '_> {
    fn refuse(&mut self, code: Code, span: Option<Range<usize>>, message: String, help: &str) {
        (self.refuse)(code, span, message, help.to_owned());
    }

    pub(crate) fn missing(&mut self, span: Option<Range<usize>>, message: &str, help: &str) {
        let span = span.or_else(|| self.span.clone());
        self.refuse(Code::MissingKey, span, message.to_owned(), help);
    }

    fn role(&mut self, role: Option<&At<String>>) -> Option<String> {
        let Some(role) = role else {
            self.missing(
                None,
                "`identity` has no `role`",
                "add one: role = \"coder\"",
            );
            return None;
        };
        if is_plain_name(&role.value) {
            return Some(role.value.clone());
        }
        let message = format!("`{}` is no name of a role", role.value.escape_debug());
        let help =
            "a role is 1 to 64 of letters, digits, ., _ and -, and starts with a letter or digit";
        self.refuse(Code::Identity, role.span.clone(), message, help);
        None
    }

    fn owner(&mut self, owner: Option<&At<String>>) -> Option<Option<String>> {
        let Some(owner) = owner else {
            return Some(None);
        };
        let text = &owner.value;
        if (1..=MAX_OWNER).contains(&text.len()) && !text.chars().any(char::is_control) {
            return Some(Some(text.clone()));
        }
        let message = "`owner` is empty, too long or not on one line".to_owned();
        let help = "write a few words: owner = \"alice\"";
        self.refuse(Code::Identity, owner.span.clone(), message, help);
        None
    }

    pub(crate) fn lifetime(&mut self, draft: Option<&At<LifetimeDraft>>) -> Option<Lifetime> {
        let help =
            "write max = \"8h\" into [lifetime], or unlimited = true, which takes an approval";
        let Some(At { value: draft, span }) = draft else {
            self.missing(None, "a manifest has no `lifetime`", help);
            return None;
        };
        let unlimited = draft.unlimited.as_ref().is_some_and(|at| at.value);
        match &draft.max {
            None if unlimited => Some(Lifetime::Unlimited),
            None => {
                self.missing(span.clone(), "`lifetime` has no end", help);
                None
            }
            Some(max) if unlimited => {
                let message = "`max` and `unlimited` exclude each other".to_owned();
                self.refuse(Code::Lifetime, max.span.clone(), message, help);
                None
            }
            Some(max) => {
                let why = match parse_seconds(&max.value) {
                    Ok(0) => "it is zero",
                    Ok(seconds) if seconds <= MAX_NUMBER as u64 => {
                        return Some(Lifetime::Seconds(seconds));
                    }
                    Ok(_) => "it is too long",
                    Err(why) => why,
                };
                let message = format!("`{}` is no lifetime: {why}", max.value.escape_debug());
                let help = "write a whole number and a unit: 90s, 15m, 8h, 7d";
                self.refuse(Code::Lifetime, max.span.clone(), message, help);
                None
            }
        }
    }

    fn secrets(
        &mut self,
        drafts: &[At<SecretDraft>],
        grants: Option<&Grants>,
    ) -> Option<Vec<SecretBinding>> {
        let mut complete = true;
        let mut variables = BTreeSet::new();
        let mut secrets: Vec<SecretBinding> = Vec::new();
        for At { value: draft, span } in drafts {
            let Some(secret) = self.secret(draft, span) else {
                complete = false;
                continue;
            };
            let twice = secret.env.clone().is_some_and(|env| !variables.insert(env));
            let at = &draft.host.as_ref().and_then(|host| host.span.clone());
            if twice || secrets.contains(&secret) {
                let message = format!("secret `{}` is there twice", secret.name);
                let help = "give each a variable of its own: env = \"TOKEN\"";
                self.refuse(Code::Secret, span.clone(), message, help);
                complete = false;
            } else if grants.is_some_and(|grants| !is_reachable(&secret, grants)) {
                let message = format!(
                    "secret `{}` is for `{}:{}`, where the partition cannot connect",
                    secret.name, secret.host, secret.port
                );
                let help = format!("grant net.connect:{}:{}", secret.host, secret.port);
                self.refuse(Code::Secret, at.clone(), message, &help);
                complete = false;
            }
            secrets.push(secret);
        }
        complete.then_some(secrets)
    }

    fn secret(
        &mut self,
        draft: &SecretDraft,
        span: &Option<Range<usize>>,
    ) -> Option<SecretBinding> {
        let Some(name) = &draft.name else {
            let help = "add the name it has in the vault: name = \"github\"";
            self.missing(span.clone(), "a secret has no `name`", help);
            return None;
        };
        let host = self.host(draft, span);
        let port = self.integer(Code::Secret, "port", draft.port.as_ref(), 1..=65_535);
        let header = self.header(draft.header.as_ref());
        let path = match &draft.path {
            None => Some(None),
            Some(path) => match path.value.parse() {
                Ok(pattern) => Some(Some(pattern)),
                Err(error) => {
                    let error: bulkhead_network::http::ParseHttpError = error;
                    let help = "leave it out for all requests to that host";
                    self.refuse(Code::Secret, path.span.clone(), error.to_string(), help);
                    None
                }
            },
        };
        let env = match &draft.env {
            Some(env) if !is_variable(&env.value) => {
                let message = format!("`{}` is no name of a variable", env.value.escape_debug());
                let help = "a name is letters, digits and _, and starts with no digit";
                self.refuse(Code::Secret, env.span.clone(), message, help);
                None
            }
            env => Some(env.as_ref().map(|env| env.value.clone())),
        };
        Some(SecretBinding {
            name: name.value.clone(),
            host: host?,
            port: u16::try_from(port?.unwrap_or(443)).ok()?,
            header: header?,
            path: path?,
            env: env?,
            ephemeral: draft.ephemeral.as_ref().is_some_and(|at| at.value),
        })
    }

    fn host(&mut self, draft: &SecretDraft, span: &Option<Range<usize>>) -> Option<String> {
        let Some(host) = &draft.host else {
            let help = "add the one host that it is for: host = \"api.github.com\"";
            self.missing(span.clone(), "a secret has no `host`", help);
            return None;
        };
        match host.value.parse() {
            Ok(Host::Name(name)) => Some(name.to_string()),
            _ => {
                let message = format!("`{}` is no name of a host", host.value.escape_debug());
                let help = "a secret is for one host by its name: no address, no *";
                self.refuse(Code::Secret, host.span.clone(), message, help);
                None
            }
        }
    }

    fn header(&mut self, header: Option<&At<String>>) -> Option<String> {
        let Some(header) = header else {
            return Some("authorization".to_owned());
        };
        // RFC 9110, section 5.1, without the signs that nobody uses.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let name = header.value.to_ascii_lowercase();
        let is_name = (1..=MAX_WORD).contains(&name.len()) && name.bytes().all(plain);
        if is_name && !FRAMING_HEADERS.contains(&name.as_str()) {
            return Some(name);
        }
        let message = format!("`{}` is no header of a secret", header.value.escape_debug());
        let help = "name one that carries a token: header = \"authorization\"";
        self.refuse(Code::Secret, header.span.clone(), message, help);
        None
    }

    /// Outer `None`: it was refused.
    fn tool_limits(
        &mut self,
        draft: Option<&At<ToolsDraft>>,
        base: &Path,
    ) -> Option<Option<std::path::PathBuf>> {
        let limits = draft.and_then(|draft| draft.value.limits.as_ref());
        match limits {
            Some(limits) if limits.value.is_empty() || limits.value.contains('\0') => {
                let message = "`limits` is no path of a file".to_owned();
                let help = "name the file with the limits of tools: limits = \"tools.toml\"";
                self.refuse(Code::Path, limits.span.clone(), message, help);
                None
            }
            limits => Some(limits.map(|limits| base.join(&limits.value))),
        }
    }

    fn spawn(&mut self, draft: Option<&At<SpawnDraft>>) -> Option<SpawnBudget> {
        let Some(At { value: draft, span }) = draft else {
            return Some(SpawnBudget::default());
        };
        if draft.roles.is_empty() {
            let help = "name the roles it may start: roles = [\"worker=4\"]";
            self.missing(span.clone(), "`spawn` has no `roles`", help);
            return None;
        }
        let Some(count) = &draft.count else {
            let help = "say how many may run at a time, of all roles together: count = 4";
            self.missing(span.clone(), "`spawn` has no `count`", help);
            return None;
        };
        let count = self.integer(Code::Spawn, "count", Some(count), 1..=MAX_COUNT);
        let depth = self.integer(Code::Spawn, "depth", draft.depth.as_ref(), 1..=MAX_DEPTH);
        Some(SpawnBudget {
            count: u32::try_from(count??).ok()?,
            depth: u32::try_from(depth?.unwrap_or(1)).ok()?,
        })
    }

    /// Outer `None`: it was refused.
    pub(crate) fn budget(&mut self, draft: Option<&At<BudgetDraft>>) -> Option<Budget> {
        let Some(At { value: draft, span }) = draft else {
            return Some(Budget::default());
        };
        let bytes = self.amount("bytes", draft.bytes.as_ref(), parse_bytes, "1GiB");
        let money = self.amount("money", draft.money.as_ref(), parse_money, "5.00");
        let whole = |number: Option<Option<i64>>| -> Option<Option<u64>> {
            Some(number?.and_then(|number| u64::try_from(number).ok()))
        };
        let calls = self.integer(Code::Budget, "calls", draft.calls.as_ref(), 1..=MAX_NUMBER);
        let tokens = draft.tokens.as_ref();
        let tokens = self.integer(Code::Budget, "tokens", tokens, 1..=MAX_NUMBER);
        let budget = Budget {
            bytes: bytes?,
            calls: whole(calls)?,
            tokens: whole(tokens)?,
            money: money?,
        };
        if budget == Budget::default() {
            let message = "`budget` limits nothing".to_owned();
            let help = "write bytes = \"1GiB\", calls = 1000, tokens = 100000 or money = \"5.00\"";
            self.refuse(Code::Budget, span.clone(), message, help);
            return None;
        }
        Some(budget)
    }

    /// Outer `None`: it was refused.
    fn amount(
        &mut self,
        key: &str,
        text: Option<&At<String>>,
        parse: fn(&str) -> Result<u64, &'static str>,
        example: &str,
    ) -> Option<Option<u64>> {
        let Some(text) = text else {
            return Some(None);
        };
        let why = match parse(&text.value) {
            Ok(0) => "it is zero",
            Ok(amount) => return Some(Some(amount)),
            Err(why) => why,
        };
        let message = format!("`{}` is no `{key}`: {why}", text.value.escape_debug());
        let help = format!("write {key} = \"{example}\"");
        self.refuse(Code::Budget, text.span.clone(), message, &help);
        None
    }

    /// Outer `None`: it was refused.
    pub(crate) fn integer(
        &mut self,
        code: Code,
        key: &str,
        number: Option<&At<i64>>,
        bounds: RangeInclusive<i64>,
    ) -> Option<Option<i64>> {
        let Some(number) = number else {
            return Some(None);
        };
        if bounds.contains(&number.value) {
            return Some(Some(number.value));
        }
        let message = format!("`{key}` cannot be {}", number.value);
        let help = format!("choose {} to {}", bounds.start(), bounds.end());
        self.refuse(code, number.span.clone(), message, &help);
        None
    }
}

/// True when some grant lets the partition connect to where the secret goes.
fn is_reachable(secret: &SecretBinding, grants: &Grants) -> bool {
    let Ok(host) = secret.host.parse() else {
        return false;
    };
    let there = Capability::NetConnect(Rule {
        protocol: Protocol::Tcp,
        host,
        ports: Ports {
            first: secret.port,
            last: secret.port,
        },
    });
    // A service of the host's own is reached at the router's address, under whatever name.
    let is_local = |held: &Capability| match held {
        Capability::NetLoopback(local) => {
            local.protocol == Protocol::Tcp && local.port == secret.port
        }
        _ => false,
    };
    let mut held = grants.capabilities();
    held.any(|held| there.is_narrower_or_equal(held) || is_local(held))
        && grants.denial(&there).is_none()
}

/// A name that every shell takes for a variable.
fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts = name.bytes().next();
    starts.is_some_and(|byte| plain(byte) && !byte.is_ascii_digit())
        && name.len() <= MAX_WORD
        && name.bytes().all(plain)
}
