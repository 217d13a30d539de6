//! ServiceEntries that claim an address of a gateway. Whoever may write one could otherwise make
//! traffic to the gateway look like traffic to a destination of their own.

use super::facts::host;
use super::gateway::Gateways;
use crate::policy::{Declaration, Problem, ProblemCode};

/// One problem for each ServiceEntry, naming the first address.
pub(super) fn problems(declarations: &[Declaration], gateways: &Gateways) -> Vec<Problem> {
    let owned: Vec<_> = gateways
        .resolved
        .iter()
        .flat_map(|(gateway, resolved)| resolved.addresses.iter().map(move |ip| (gateway, *ip)))
        .collect();
    let problem = |declaration: &Declaration| {
        let claims = |ip| declaration.addresses.iter().any(|net| net.contains(&host(ip)));
        let (gateway, ip) = owned.iter().find(|(_, ip)| claims(*ip))?;
        Some(Problem {
            code: ProblemCode::GatewayAddressClaimed,
            origin: declaration.origin.clone(),
            message: format!(
                "claims {ip}, which is an address of gateway {}/{}; it opens nothing there and \
                 declares nothing there: remove the address, or find out who wrote it",
                gateway.namespace,
                gateway.name()
            ),
        })
    };
    declarations.iter().filter_map(problem).collect()
}
