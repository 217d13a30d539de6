//! Which Debian mirror this machine uses, read from its own apt sources.
//!
//! No host name is written in this repository: a machine behind a proxy or with a local mirror
//! has said so in its sources already.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The address of the archive that has this system's release.
pub(super) fn debian() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = field(&release, "VERSION_CODENAME")
        .context("/etc/os-release names no VERSION_CODENAME: is this Debian?")?;
    sources(Path::new("/etc/apt"))
        .into_iter()
        .filter_map(|path| Some((fs::read_to_string(&path).ok()?, path)))
        .find_map(|(text, path)| {
            if path.extension().is_some_and(|extension| extension == "sources") {
                in_stanzas(&text, &codename)
            } else {
                in_lines(&text, &codename)
            }
        })
        .with_context(|| {
            format!("/etc/apt has no source for Debian {codename} main: add one and run again")
        })
}

fn sources(apt: &Path) -> Vec<PathBuf> {
    let mut paths = vec![apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
        paths.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    paths.sort();
    paths
}

/// A value of `/etc/os-release`, without quotes.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"').to_owned())
}

/// The deb822 format: stanzas of `Key: value`, separated by empty lines.
fn in_stanzas(text: &str, codename: &str) -> Option<String> {
    let mut stanza = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')).chain([""]) {
        if let Some((key, value)) = line.split_once(':') {
            stanza.insert(key.to_ascii_lowercase(), value.trim());
        } else if line.trim().is_empty() {
            let has = |key: &str, word: &str| {
                stanza.get(key).is_some_and(|value| value.split_whitespace().any(|w| w == word))
            };
            let usable = has("types", "deb")
                && has("suites", codename)
                && has("components", "main")
                && !has("enabled", "no");
            if usable && let Some(uris) = stanza.get("uris") {
                return uris.split_whitespace().next().map(str::to_owned);
            }
            stanza.clear();
        }
    }
    None
}

/// The one-line format: `deb [options] uri suite component...`.
fn in_lines(text: &str, codename: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
        if rest.starts_with('[') {
            rest = rest.split_once(']')?.1;
        }
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        (suite == codename && words.any(|component| component == "main")).then(|| uri.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_read_and_others_passed_over() {
        let text = "Types: deb\nURIs: http://other.test/x\nSuites: nodistro\nComponents: main\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://off.test/d\nSuites: bookworm\n\
                    Components: main\n\nTypes: deb\n# was http://old.test/d\n\
                    URIs: http://mirror.test/debian http://second.test/d\n\
                    Suites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(in_stanzas(text, "bookworm").unwrap(), "http://mirror.test/debian");
        assert_eq!(in_stanzas(text, "trixie"), None);
    }

    #[test]
    fn lines_are_read_with_and_without_options() {
        let text = "# deb http://old.test/d bookworm main\n\
                    deb-src http://src.test/d bookworm main\n\
                    deb http://cloud.test sdk-bookworm main\n\
                    deb [signed-by=/k.gpg arch=amd64] http://mirror.test/debian bookworm main\n";
        assert_eq!(in_lines(text, "bookworm").unwrap(), "http://mirror.test/debian");
        assert_eq!(in_lines("deb http://m.test/d sid main", "sid").unwrap(), "http://m.test/d");
        assert_eq!(in_lines(text, "sid"), None);
    }

    #[test]
    fn the_codename_has_no_quotes() {
        let text = "NAME=\"Debian\"\nVERSION_CODENAME=\"bookworm\"\n";
        assert_eq!(field(text, "VERSION_CODENAME").unwrap(), "bookworm");
        assert_eq!(field(text, "ID"), None);
    }
}
