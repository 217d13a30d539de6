//! Names of DNS messages, and the one reader of their bytes.

use std::fmt;

/// Bytes of a name as it stands in a message, without compression.
const LONGEST: usize = 255;
/// Pointers that one name may follow: more than any server writes.
const MOST_POINTERS: usize = 32;

/// A host name: lower case, labels joined by dots, without the last dot. What is no letter, digit,
/// hyphen or underscore is written as `\ddd`, so that a name never ends a line or another field.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// From text, such as a host of a ServiceEntry.
    pub fn of(text: &str) -> Self {
        Self(text.trim_end_matches('.').to_ascii_lowercase())
    }

    /// The name as text; empty for the root.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the root's.
    pub const fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is this domain's, or one below it.
    pub fn is_under(&self, domain: &str) -> bool {
        match self.0.strip_suffix(domain) {
            Some(rest) => rest.is_empty() || rest.ends_with('.'),
            None => false,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads on from a place in a message; `None` beyond its end, as everywhere below.
pub(super) struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(message: &'a [u8], at: usize) -> Self {
        Self { message, at }
    }

    /// Where it stands, bytes from the start of the message.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let found = self.message.get(self.at..end)?;
        self.at = end;
        Some(found)
    }

    pub(super) fn half(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(super) fn word(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A name. A pointer leads to a place before the one it was reached from, so that no name goes
    /// in circles.
    pub(super) fn name(&mut self) -> Option<Name> {
        let mut text = String::new();
        let mut length = 0;
        let mut place = Self { message: self.message, at: self.at };
        let mut start = self.at;
        let mut end = None;
        let mut pointers = 0;
        loop {
            let first = place.bytes(1)?.first().copied()?;
            match first {
                0 => break,
                1..=63 => {
                    let label = place.bytes(usize::from(first))?;
                    length += label.len() + 1;
                    if length >= LONGEST {
                        return None;
                    }
                    if !text.is_empty() {
                        text.push('.');
                    }
                    label.iter().for_each(|byte| push(&mut text, *byte));
                }
                0xc0..=0xff => {
                    let low = place.bytes(1)?.first().copied()?;
                    let target = usize::from(u16::from_be_bytes([first & 0x3f, low]));
                    pointers += 1;
                    if target >= start || pointers > MOST_POINTERS {
                        return None;
                    }
                    end.get_or_insert(place.at);
                    start = target;
                    place.at = target;
                }
                // Kinds of labels that nobody uses.
                64..=0xbf => return None,
            }
        }
        self.at = end.unwrap_or(place.at);
        Some(Name(text))
    }
}

fn push(text: &mut String, byte: u8) {
    use std::fmt::Write as _;
    match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'*' => text.push(char::from(byte)),
        b'A'..=b'Z' => text.push(char::from(byte.to_ascii_lowercase())),
        // Writing to a string cannot fail.
        _ => drop(write!(text, "\\{byte:03}")),
    }
}
