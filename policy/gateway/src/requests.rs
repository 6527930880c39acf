//! What the partition's tools want: connections to web servers in the partition's name. They are
//! decided on as the guest's own are, and handed to the proxy, which decides on each request. Used by
//! [`crate::Gateway`] and by those who resolve names for it.

use std::net::Ipv4Addr;

use bulkhead_network::Protocol;
use bulkhead_network::tools::Wanted;
use bulkhead_proxy::Flow;

use crate::core::Core;
use crate::host::Host;

/// The address that is wanted, where nobody has to be asked.
pub(crate) fn known<H: Host>(core: &Core<H>, wanted: &Wanted) -> Option<Ipv4Addr> {
    let is_local = core.config.hosts.contains(&wanted.host);
    let local = is_local.then_some(core.config.router);
    local.or_else(|| wanted.host.parse().ok())
}

/// The host of `wanted` is at this address: hands it on, if a rule allows it.
pub(crate) fn go_on<H: Host>(core: &mut Core<H>, wanted: &Wanted, address: Ipv4Addr) {
    let (config, now, port) = (&core.config, core.now, wanted.port);
    let allowed = core
        .rules
        .outbound(config, now, Protocol::Tcp, address, port);
    let route = match allowed {
        Ok(route) if route.models => {
            refuse(core, wanted, "models are the guest's own to call");
            return;
        }
        Ok(route) => route,
        Err(refusal) => {
            core.refuse(&refusal);
            core.host.refuse_tools(wanted, &refusal.to_string());
            return;
        }
    };
    core.stats.tcp_out += 1;
    let flow = Flow {
        to: route.to,
        port,
        address: (address != core.config.router).then_some(address),
        by_address: route.by_address,
        names: route.names.unwrap_or_default(),
        pinned: route.pinned,
    };
    if let Err(error) = core.host.hand_to_tools(wanted, flow) {
        let why = format!("there is no connection: {error}");
        core.host.refuse_tools(wanted, &why);
    }
}

/// Tells people, and the tools, why not.
pub(crate) fn refuse<H: Host>(core: &mut Core<H>, wanted: &Wanted, why: &str) {
    let (host, port) = (crate::chatter::printable(&wanted.host), wanted.port);
    core.stats.refused += 1;
    let said = format_args!("refused tcp to {host}:{port} for tools: {why}");
    core.chatter.say(core.now, said);
    core.host.refuse_tools(wanted, why);
}
