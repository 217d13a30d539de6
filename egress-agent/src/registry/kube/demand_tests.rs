//! What is asked for, as the server is asked.

use super::*;

#[test]
fn a_watch_is_asked_for_by_selectors() {
    let watch = Watch::within(
        Kind::Pod,
        "mesh",
        Select::Labels(BTreeMap::from([
            ("app".to_owned(), "egw".to_owned()),
            ("istio".to_owned(), "egressgateway".to_owned()),
        ])),
    );
    assert_eq!(
        (watch.fields(), watch.labels()),
        (String::new(), "app=egw,istio=egressgateway".to_owned())
    );
    assert!(!watch.only_loses_deleted());
    let watch = Watch::within(Kind::Pod, "mesh", Select::Account("egw".to_owned()));
    assert_eq!(
        (watch.fields(), watch.labels()),
        ("spec.serviceAccountName=egw".to_owned(), String::new())
    );
    assert!(watch.only_loses_deleted());
    assert_eq!(watch.to_string(), "namespace mesh, spec.serviceAccountName=egw");
}

#[test]
fn pods_of_other_nodes_are_not_watched() {
    let standing = standing("node-a");
    let pods: Vec<&Watch> = standing.iter().filter(|watch| watch.kind == Kind::Pod).collect();
    assert_eq!(
        pods,
        [&Watch { kind: Kind::Pod, namespace: None, select: Select::Node("node-a".to_owned()) }]
    );
    assert!(!standing.iter().any(|watch| watch.kind == Kind::Service));
}
