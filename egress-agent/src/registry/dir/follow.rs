//! When to look at the directory again: inotify for speed, a slow look for what inotify misses
//! (targets of links, a directory that was replaced, an overflow).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::time::{Instant, sleep};

use super::Directory;
use crate::registry::RegistryError;
use crate::registry::publish::Publisher;
use crate::supervise::Shutdown;

/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A directory that never rests is published this often all the same.
const RESTLESS: Duration = Duration::from_millis(500);
/// A look without any notification.
const RESCAN: Duration = Duration::from_secs(2);
/// A file is taken as it is when its writer has not closed it for so long.
const WRITING: Duration = Duration::from_secs(2);

/// Publishes a snapshot at once and after every change, until shutdown.
pub(in crate::registry) async fn follow(
    root: &Path,
    publish: Publisher,
    mut shutdown: Shutdown,
) -> Result<(), RegistryError> {
    let mut directory = Directory::new(root);
    let mut watcher = Watcher::new(root)
        .map_err(|source| RegistryError::Watch { path: root.to_owned(), source })?;
    look(&mut directory, &mut watcher)
        .map_err(|source| RegistryError::Directory { path: root.to_owned(), source })?;
    let mut read = true;
    loop {
        let began = Instant::now();
        // A file may have been truncated while it was read: only a look that nothing disturbed
        // is published.
        while began.elapsed() < RESTLESS && watcher.drain() {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                () = sleep(DEBOUNCE) => {}
            }
            watcher.drain();
            // A directory that cannot be read now is in the snapshot's problems.
            read = look(&mut directory, &mut watcher).is_ok();
        }
        publish.update(directory.snapshot(), began.into_std());
        publish.set_in_step(read);
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            () = watcher.changed() => {}
            () = sleep(RESCAN) => {
                read = look(&mut directory, &mut watcher).is_ok();
            }
        }
    }
}

/// Looks at everything, with a watch on every directory from before it was read.
fn look(directory: &mut Directory, watcher: &mut Watcher) -> io::Result<()> {
    loop {
        let directories = directory.scan(&watcher.writing())?;
        if !watcher.watch(&directories) {
            return Ok(());
        }
    }
}

/// Notifications of a tree of directories.
struct Watcher {
    root: PathBuf,
    watches: Watches,
    events: EventStream<Vec<u8>>,
    watched: Vec<(WatchDescriptor, PathBuf)>,
    /// Directories that could not be watched: only the slow look sees their changes.
    unwatched: BTreeSet<PathBuf>,
    /// Files that were changed and not closed since, with the time of the first change.
    open: Vec<(PathBuf, Instant)>,
    /// A notification came that [`drain`](Self::drain) has not told yet.
    stirred: bool,
}

impl Watcher {
    fn new(root: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        Ok(Self {
            root: root.to_owned(),
            watches,
            events: inotify.into_event_stream(vec![0; 16 * 1024])?,
            watched: Vec::new(),
            unwatched: BTreeSet::new(),
            open: Vec::new(),
            stirred: false,
        })
    }

    /// Watches exactly these directories; tells whether one of them was not watched before.
    fn watch(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let before = std::mem::take(&mut self.watched);
        let mut new = false;
        let mut unwatched = BTreeSet::new();
        for path in directories {
            match self.watches.add(self.root.join(path), mask) {
                Ok(watch) => {
                    new |= !before.iter().any(|(known, _)| *known == watch);
                    self.watched.push((watch, path.clone()));
                }
                Err(error) => {
                    if !self.unwatched.contains(path) {
                        tracing::warn!(path = %self.root.join(path).display(), %error,
                            "directory cannot be watched, its changes are seen late; \
                             raise fs.inotify.max_user_watches");
                    }
                    unwatched.insert(path.clone());
                }
            }
        }
        self.unwatched = unwatched;
        for (old, _) in before {
            if !self.watched.iter().any(|(watch, _)| *watch == old) {
                // Fails for a directory that is gone, whose watch went with it.
                let _ = self.watches.remove(old);
            }
        }
        new
    }

    /// Files somebody is writing now.
    fn writing(&mut self) -> BTreeSet<PathBuf> {
        self.open.retain(|(_, since)| since.elapsed() < WRITING);
        self.open.iter().map(|(path, _)| path.clone()).collect()
    }

    /// Waits for a notification that [`drain`](Self::drain) has not told yet.
    async fn changed(&mut self) {
        if self.stirred {
            return;
        }
        match self.events.next().await {
            Some(Ok(event)) => self.note(event),
            // The slow look is left; without the pause a broken descriptor would spin.
            Some(Err(_)) | None => sleep(RESCAN).await,
        }
    }

    /// Takes every notification that is there; tells whether there was any since the last call.
    fn drain(&mut self) -> bool {
        while let Some(Some(Ok(event))) = self.events.next().now_or_never() {
            self.note(event);
        }
        std::mem::take(&mut self.stirred)
    }

    fn note(&mut self, event: Event<std::ffi::OsString>) {
        self.stirred = true;
        let directory = self.watched.iter().find(|(watch, _)| *watch == event.wd);
        let (Some((_, directory)), Some(name)) = (directory, event.name) else { return };
        let path = directory.join(name);
        let open = self.open.iter().position(|(known, _)| *known == path);
        if event.mask.contains(EventMask::MODIFY) {
            if open.is_none() {
                self.open.push((path, Instant::now()));
            }
        } else if let Some(at) = open {
            self.open.swap_remove(at);
        }
    }
}
