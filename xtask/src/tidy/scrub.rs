//! Rust source without its comments and the contents of its strings, line for line.
//!
//! Not a lexer: just enough that a word in a comment or a message is never taken for code.

/// The code of `text`; every line keeps its number.
pub(super) fn code(text: &str) -> Vec<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest, out.chars().next_back()) {
            out.push_str("\"\"");
            length
        } else if let Some(length) = char_literal(rest) {
            out.push_str("' '");
            length
        } else {
            out.push(character);
            rest = &rest[character.len_utf8()..];
            continue;
        };
        out.extend(rest[..taken].chars().filter(|character| *character == '\n'));
        rest = &rest[taken..];
    }
    out.split('\n').map(str::to_owned).collect()
}

/// Whether each line of `code` belongs to an item behind an attribute that contains one of
/// `gates`, such as `#[cfg(test)]`.
pub(super) fn gated(code: &[String], gates: &[&str]) -> Vec<bool> {
    let mut gated = vec![false; code.len()];
    let mut start = 0;
    while start < code.len() {
        if !gates.iter().any(|gate| code[start].contains(gate)) {
            start += 1;
            continue;
        }
        // The item ends with the brace that closes it, or with a semicolon outside any bracket.
        let (mut depth, mut end) = (0i32, start);
        'item: while end < code.len() {
            for character in code[end].chars() {
                match character {
                    '{' | '(' | '[' => depth += 1,
                    '}' | ')' | ']' => depth -= 1,
                    _ => {}
                }
                if depth == 0 && matches!(character, '}' | ';') {
                    break 'item;
                }
            }
            end += 1;
        }
        let end = end.min(code.len() - 1);
        gated[start..=end].fill(true);
        start = end + 1;
    }
    gated
}

/// Whether `line` has `word` as a whole word.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    positions(line, word).next().is_some()
}

/// Where `word` stands as a whole word in `line`.
pub(super) fn positions<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).map(|(position, _)| position).filter(move |position| {
        !line[..*position].ends_with(part) && !line[position + word.len()..].starts_with(part)
    })
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut position) = (0, 0);
    while position < text.len() {
        if text[position..].starts_with("/*") {
            depth += 1;
            position += 2;
        } else if text[position..].starts_with("*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                return position;
            }
        } else {
            position += text[position..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string literal that `text` starts with, raw or not.
fn string(text: &str, before: Option<char>) -> Option<usize> {
    if text.starts_with('"') {
        let mut escaped = false;
        for (position, character) in text.char_indices().skip(1) {
            match character {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => return Some(position + 1),
                _ => {}
            }
        }
        return Some(text.len());
    }
    // `r` at the end of a name starts no string; `br` does, its `b` stays in the code.
    let raw = text.strip_prefix('r')?;
    if before.is_some_and(|c| (c.is_alphanumeric() && c != 'b') || c == '_') {
        return None;
    }
    let hashes = raw.len() - raw.trim_start_matches('#').len();
    let body = raw[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&close).map_or(body.len(), |end| end + close.len());
    Some(1 + hashes + 1 + length)
}

/// The length of the character literal that `text` starts with; a lifetime is none.
fn char_literal(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    if let Some(escape) = body.strip_prefix('\\') {
        // The escaped character may itself be a quote.
        return Some(3 + escape[1..].find('\'')? + 1);
    }
    let length = body.chars().next()?.len_utf8();
    body[length..].starts_with('\'').then_some(length + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_not_code() {
        let text = "a // one\n/* two\n /* nested */ */ b \"thr\\\"ee\nfour\" c\nr#\"fi\"ve\"# d";
        assert_eq!(code(text), ["a ", "", " b \"\"", " c", "\"\" d"]);
    }

    #[test]
    fn quotes_that_are_characters_start_no_string() {
        let text = "'\"' a '\\'' b 'x: 'y' \"s\" for r in bar\"z\"";
        assert_eq!(code(text), ["' ' a ' ' b 'x: ' ' \"\" for r in bar\"\""]);
    }

    #[test]
    fn a_gate_covers_its_item_and_no_more() {
        let text = "use a;\n#[cfg(test)]\nuse b;\n#[cfg(test)]\nmod t {\n    x;\n}\nuse c;";
        let expected = [false, true, true, true, true, true, true, false];
        assert_eq!(gated(&code(text), &["cfg(test)"]), expected);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe {", "unsafe"));
        assert!(!has_word("forbid(unsafe_code)", "unsafe"));
        assert!(!has_word("is_unsafe", "unsafe"));
    }
}
