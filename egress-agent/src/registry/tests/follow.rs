//! Changes of the directory while it is followed.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::*;
use crate::policy::ProblemCode;
use crate::supervise;

/// Edits the directory and waits for what must come of it.
struct Followed {
    root: TempDir,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    end: supervise::ShutdownTrigger,
}

/// Follows the directory while the test runs, and requires a clean end.
fn follow(files: &[(&str, &str)], test: impl AsyncFnOnce(&mut Followed)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (publish, Published { snapshots, .. }) = channel();
        let (end, shutdown) = supervise::pair();
        let root = directory(files);
        let source = Source::Dir(root.path().to_owned());
        let registry = Registry::open(&source, None).await.unwrap().follow(publish, shutdown);
        let mut followed = Followed { root, snapshots, end };
        let test = async {
            followed.until(|snapshot| snapshot.revision == 1).await;
            test(&mut followed).await;
            followed.end.request();
        };
        let (result, ()) = tokio::join!(registry, test);
        result.unwrap();
    });
}

impl Followed {
    fn path(&self) -> &Path {
        self.root.path()
    }

    fn now(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Waits for a snapshot that is as described.
    async fn until(&mut self, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let wait = async {
            self.snapshots.wait_for(|snapshot| wanted(snapshot)).await.unwrap();
        };
        let found = tokio::time::timeout(Duration::from_secs(5), wait).await;
        assert!(found.is_ok(), "not published within 5 s; now {:?}", self.now());
        self.now()
    }

    /// Long enough for anything that would be published to be published.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
}

fn pod(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: {name}}}\n")
}

fn enforced(snapshot: &Snapshot) -> bool {
    snapshot
        .policies
        .get("payments")
        .is_some_and(|policy| policy.mode == egress_common::Mode::Enforce)
}

#[test]
fn adding_editing_renaming_and_deleting_is_seen() {
    follow(&[("policy.yaml", POLICY)], async |dir| {
        write(dir.path(), "a.yaml", &pod("one"));
        let began = Instant::now();
        dir.until(|now| now.pods.contains_key("one")).await;
        println!("seen after {:?}", began.elapsed());
        write(dir.path(), "a.yaml", &pod("two"));
        dir.until(|now| now.pods.contains_key("two") && now.pods.len() == 1).await;
        write(dir.path(), "new/sub/b.yaml", &pod("three"));
        dir.until(|now| now.pods.len() == 2).await;
        write(dir.path(), "new/sub/b.yaml", &pod("four"));
        dir.until(|now| now.pods.contains_key("four")).await;
        // An editor's way: a new file over the old one.
        write(dir.path(), ".a.tmp", &pod("five"));
        fs::rename(dir.path().join(".a.tmp"), dir.path().join("a.yaml")).unwrap();
        dir.until(|now| now.pods.contains_key("five") && !now.pods.contains_key("two")).await;
        fs::rename(dir.path().join("new"), dir.path().join("old")).unwrap();
        dir.until(|now| {
            now.pods
                .get("four")
                .is_some_and(|pod| pod.origin.file.as_deref() == Some("old/sub/b.yaml:1"))
        })
        .await;
        fs::remove_dir_all(dir.path().join("old")).unwrap();
        dir.until(|now| !now.pods.contains_key("four")).await;
        fs::remove_file(dir.path().join("policy.yaml")).unwrap();
        let last = dir.until(|now| now.policies.is_empty()).await;
        assert!(last.complete && last.problems.is_empty());
    });
}

#[test]
fn nothing_is_published_when_nothing_changed() {
    follow(&[("a.yaml", &pod("one"))], async |dir| {
        write(dir.path(), "a.yaml", &pod("one"));
        write(dir.path(), "notes.txt", "no manifest");
        dir.settle().await;
        assert_eq!(dir.now().revision, 1);
    });
}

#[test]
fn a_half_written_file_keeps_its_objects_until_it_is_complete() {
    follow(&[("policy.yaml", POLICY)], async |dir| {
        for half in [
            "",
            &POLICY[..90],
            &POLICY[..POLICY.len() - 60],
            "apiVersion: v1\nkind: Pod\nmetadata:\n  na",
        ] {
            write(dir.path(), "policy.yaml", half);
            let now = dir.until(|now| !now.problems.is_empty()).await;
            assert!(enforced(&now) && now.complete, "{half}");
            println!("{}", describe(&now.problems[0]));
            write(dir.path(), "policy.yaml", POLICY);
            dir.until(|now| now.problems.is_empty()).await;
        }
    });
}

#[test]
fn a_file_that_is_still_open_is_not_read() {
    use std::io::Write;
    follow(&[("policy.yaml", POLICY), ("a.yaml", &pod("one"))], async |dir| {
        // Cut where it still parses: without its second object.
        let text = format!("{}---\n{POLICY}", pod("first"));
        write(dir.path(), "policy.yaml", &text);
        dir.until(|now| now.pods.contains_key("first")).await;
        let mut file = fs::File::create(dir.path().join("policy.yaml")).unwrap();
        file.write_all(pod("first").as_bytes()).unwrap();
        write(dir.path(), "a.yaml", &pod("two"));
        let now = dir.until(|now| now.pods.contains_key("two")).await;
        assert!(enforced(&now));
        file.write_all(format!("---\n{POLICY}").as_bytes()).unwrap();
        drop(file);
        dir.settle().await;
        assert!(enforced(&dir.now()) && dir.now().problems.is_empty());
    });
}

#[test]
fn an_invalid_policy_keeps_its_last_good_version_and_others_change() {
    follow(&[("policy.yaml", POLICY)], async |dir| {
        let broken = POLICY.replace("enforce\n", "enforced\n");
        write(dir.path(), "policy.yaml", &format!("{}---\n{broken}", pod("new")));
        let now = dir.until(|now| now.pods.contains_key("new")).await;
        assert!(enforced(&now) && now.complete);
        let [problem] = now.problems.as_slice() else { panic!("{:?}", now.problems) };
        assert_eq!(
            (problem.code, problem.origin.file.as_deref()),
            (ProblemCode::Invalid, Some("policy.yaml:5"))
        );
        assert!(problem.message.ends_with("its last good version stays"), "{}", problem.message);
        // Deleting the object is a deletion, however broken it is.
        write(dir.path(), "policy.yaml", &pod("new"));
        let now = dir.until(|now| now.policies.is_empty()).await;
        assert!(now.problems.is_empty());
    });
}

#[test]
fn a_swapped_config_map_is_seen() {
    follow(&[], async |dir| {
        write(dir.path(), "..v1/policy.yaml", POLICY);
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/policy.yaml", dir.path().join("policy.yaml")).unwrap();
        dir.until(enforced).await;
        write(dir.path(), "..v2/policy.yaml", &POLICY.replace("enforce\n", "audit\n"));
        symlink("..v2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        fs::remove_dir_all(dir.path().join("..v1")).unwrap();
        let now = dir.until(|now| !enforced(now)).await;
        assert_eq!(now.policies["payments"].mode, egress_common::Mode::Audit);
        // A link to nothing is a mistake and no deletion.
        fs::remove_dir_all(dir.path().join("..v2")).unwrap();
        let now = dir.until(|now| !now.problems.is_empty()).await;
        assert!(now.policies.contains_key("payments"));
    });
}

#[test]
fn a_directory_that_disappears_leaves_the_last_snapshot() {
    follow(&[("policy.yaml", POLICY)], async |dir| {
        let (here, away) = (dir.path().to_owned(), dir.path().with_extension("away"));
        fs::rename(&here, &away).unwrap();
        let now = dir.until(|now| !now.problems.is_empty()).await;
        assert!(enforced(&now));
        assert_eq!(now.problems[0].origin.kind, "Directory");
        fs::rename(&away, &here).unwrap();
        write(&here, "a.yaml", &pod("back"));
        let now = dir.until(|now| now.pods.contains_key("back")).await;
        assert!(enforced(&now) && now.problems.is_empty());
    });
}

#[test]
fn a_directory_that_is_not_there_at_start_is_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (publish, Published { snapshots, .. }) = channel();
    let (_end, shutdown) = supervise::pair();
    let source = Source::Dir("/nowhere/at/all".into());
    let error = runtime.block_on(async {
        Registry::open(&source, None).await.unwrap().follow(publish, shutdown).await.unwrap_err()
    });
    assert!(matches!(error, RegistryError::Directory { .. }), "{error}");
    assert_eq!(snapshots.borrow().revision, 0);
}
