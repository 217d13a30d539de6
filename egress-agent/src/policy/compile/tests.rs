//! One test for each rule; the judge is `decide` itself wherever a rule is about traffic.

mod coverage;
mod exact;
mod exceptions;
pub(crate) mod fixture;
mod gateways;
mod imports;
mod limit;
mod links;
mod narrow;
mod orphans;
mod properties;
mod ranges;
mod redirect;
mod refusals;
mod selection;
mod shadows;
mod strangers;
