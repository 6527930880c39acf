//! The third rule: it asks for no more than its role may have.

use super::bounds::Bounds;
use super::{Case, Rejection, Role, Rule};
use crate::system::Limits;

/// A role that nobody has described may have nothing, and so there is no partition of it.
pub(super) fn check(case: &Case<'_>, role: Option<&Role>) -> Result<(), Box<Rejection>> {
    let name = &case.mandate().role;
    let Some(role) = role else {
        let message = format!("there is no role `{name}` on this host");
        let help = format!("describe what it may have at most, in roles/{name}.toml");
        let span = case.manifest.spans().role.clone();
        return Err(case.reject(Rule::Ceiling, "identity.role", span, message, help));
    };
    let may_copy = |path: &std::path::Path| role.may_copy(path);
    Bounds {
        rule: Rule::Ceiling,
        whose: format!("role `{name}`"),
        grants: &role.grants,
        memory_mib: role.memory_mib,
        vcpus: role.vcpus,
        autonomy: role.autonomy,
        tool_limits: None,
        conditions: role.conditions,
        limits: Limits::default(),
        lifetime: role.lifetime,
        spawn: role.spawn,
        budget: &role.budget,
        may_copy: &may_copy,
    }
    .check(case)
}
