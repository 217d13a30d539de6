//! Every manifest of Istio's own documentation and tests, where a copy of them is at hand; and
//! one object of each kind, which are always.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use egress_common::state::Capture;

use super::*;
use crate::policy::classify::{Class, Destination, classify};
use crate::policy::compile::compile;
use crate::policy::mesh::listen::listening;
use crate::policy::mesh::scope::Client;
use crate::policy::{ClusterConfig, NodeState};
use crate::registry::assemble::{Kept, assemble};
use crate::registry::manifest;
use crate::registry::object::{self, Entry, Kind};

const SAMPLES: &str = include_str!("samples.yaml");

/// Kinds of the mesh: every one of them must be met, in the samples and in the corpus.
const MESH: [Kind; 7] = [
    Kind::ServiceEntry,
    Kind::Gateway,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::Sidecar,
    Kind::AuthorizationPolicy,
    Kind::ApiGateway,
];

/// What became of the objects of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    read: usize,
    refused: usize,
    /// Of a kind that does not matter here.
    skipped: usize,
}

/// What was read, by kind and as entries.
#[derive(Default)]
struct Reading {
    kinds: BTreeMap<(String, String), Tally>,
    entries: Vec<Entry>,
    refusals: Vec<String>,
}

impl Reading {
    /// One file, object by object, so that one that is refused costs no other.
    fn add(&mut self, file: &str, text: &[u8]) {
        let objects = match manifest::objects(file, text) {
            Ok(objects) => objects,
            Err(error) => return self.refusals.push(format!("{file}: {error}")),
        };
        for (line, value) in objects {
            let text = |name: &str| value[name].as_str().unwrap_or("none").to_owned();
            let version = text("apiVersion");
            let group = version.split_once('/').map_or("", |(group, _)| group).to_owned();
            let tally = self.kinds.entry((text("kind"), group)).or_default();
            let place = format!("{file}:{line}");
            match object::read(value, Some(place.clone())) {
                Ok(Some(entry)) => {
                    match &entry.item {
                        Ok(_) => tally.read += 1,
                        Err(error) => {
                            tally.refused += 1;
                            self.refusals.push(format!("{place} {}: {error}", entry.origin));
                        }
                    }
                    self.entries.push(entry);
                }
                Ok(None) => tally.skipped += 1,
                Err(error) => {
                    tally.refused += 1;
                    self.refusals.push(format!("{place} {error}"));
                }
            }
        }
    }

    fn print(&self) {
        println!("{:24} {:32} {:>5} {:>8} {:>8}", "KIND", "GROUP", "READ", "REFUSED", "SKIPPED");
        for ((kind, group), Tally { read, refused, skipped }) in &self.kinds {
            println!("{kind:24} {group:32} {read:5} {refused:8} {skipped:8}");
        }
        for refusal in &self.refusals {
            println!("    refused {refusal}");
        }
    }

    /// How many objects of a kind are good.
    fn good(&self, kind: Kind) -> usize {
        let good = self.entries.iter().filter(|entry| entry.key.kind == kind);
        good.filter(|entry| entry.item.is_ok()).count()
    }

    /// Everything together goes through everything that reads it, under a policy that narrows.
    fn use_it(&self) {
        let policy = POLICY.replace("  mode:", "  narrow: true\n  mode:");
        let mut all = self.entries.clone();
        all.extend(manifest::read("policy.yaml", policy.as_bytes()).unwrap());
        let (snapshot, _) = assemble(&all, Vec::new(), true, Kept::new());
        let desired = compile(&snapshot, &ClusterConfig::default(), &NodeState::default());
        let none = BTreeMap::new();
        let namespaces = snapshot.declarations.iter().map(|one| one.name.namespace.as_str());
        let namespaces: BTreeSet<&str> = namespaces.chain(["payments"]).collect();
        let mut classes: BTreeMap<Class, usize> = BTreeMap::new();
        for (namespace, declaration) in
            namespaces.iter().flat_map(|one| snapshot.declarations.iter().map(move |to| (one, to)))
        {
            for capture in [Capture::Sidecar, Capture::Ambient] {
                let (gateway, revision, labels) = (false, "", &none);
                let client = Client { namespace, labels, capture, gateway, revision };
                let ip = declaration.addresses.first().map(ipnet::IpNet::addr);
                let host = declaration.hosts.first().map(String::as_str);
                let port = declaration.ports.first().copied().unwrap_or(443);
                let found = classify(&snapshot, &client, &Destination { host, ip, port });
                assert!(found.class != Class::Undeclared || host.is_none(), "{declaration:?}");
                *classes.entry(found.class).or_default() += 1;
            }
        }
        let bound: usize =
            snapshot.mesh.gateways.values().map(|one| listening(&snapshot, one).len()).sum();
        println!(
            "{} declarations in {} namespaces: {classes:?}; {bound} servers bound; {} problems",
            snapshot.declarations.len(),
            namespaces.len(),
            desired.problems.len(),
        );
    }
}

#[test]
fn one_object_of_each_kind_is_read() {
    let mut samples = Reading::default();
    samples.add("samples.yaml", SAMPLES.as_bytes());
    samples.print();
    samples.use_it();
    for kind in MESH.into_iter().chain([Kind::ConfigMap, Kind::EgressPolicy, Kind::Pod]) {
        assert!(samples.good(kind) > 0, "no {kind:?} among the samples");
    }
    let route = ("HTTPRoute".to_owned(), "gateway.networking.k8s.io".to_owned());
    assert_eq!(samples.kinds[&route], Tally { skipped: 1, ..Tally::default() });
    assert_eq!(samples.refusals.len(), 1, "the one that is wrong on purpose");
    assert!(samples.refusals[0].contains("spec.egress"), "{}", samples.refusals[0]);
}

#[test]
fn every_manifest_of_the_corpus_is_read_or_refused_by_name() {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/istio-corpus"));
    let corpus = std::env::var_os("EGRESS_ISTIO_CORPUS").map_or(beside, PathBuf::from);
    if !corpus.is_dir() {
        println!(
            "NO CORPUS at {}: only the built-in samples were read, by the test beside this one; \
             set EGRESS_ISTIO_CORPUS to a directory of Istio manifests",
            corpus.display()
        );
        return one_object_of_each_kind_is_read();
    }
    let mut all = Reading::default();
    let (mut files, mut whole) = (0, 0);
    for path in manifests(&corpus) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read(&path).unwrap();
        let before = all.refusals.len();
        all.add(&name, &text);
        files += 1;
        whole += usize::from(all.refusals.len() == before);
        // As the directory registry takes it: whole or not at all.
        let root = directory(&[]);
        fs::write(root.path().join(&name), &text).unwrap();
        let _ = read(root.path());
    }
    all.print();
    all.use_it();
    println!("{whole} of {files} files without fault");
    for kind in MESH {
        let (good, entries) = (all.good(kind), &all.entries);
        let found = entries.iter().filter(|entry| entry.key.kind == kind).count();
        assert!(good > 0, "the corpus holds a {kind:?}, and none was read");
        assert!(found - good <= 1, "{} of {found} objects of kind {kind:?} refused", found - good);
    }
    assert!(whole * 10 >= files * 8, "most of the corpus is legal");
}

/// The YAML files of a directory, by name.
fn manifests(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect();
    files.sort();
    files
}
