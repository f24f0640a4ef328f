//! The code keeps the order of the modules in `src/lib.rs`: no module uses one that stands above it.

use std::{collections::BTreeSet, fs, path::Path};

/// The modules as `src/lib.rs` lists them.
#[derive(Debug)]
struct Order {
    /// Each may use the modules after it.
    rooms: Vec<String>,
    /// Each may use the other leaves, and none of the rooms.
    leaves: Vec<String>,
}

impl Order {
    /// Reads the list in the documentation of the crate.
    fn read(lib: &str) -> Self {
        let docs: Vec<_> = lib.lines().map_while(|line| line.strip_prefix("//!")).collect();
        let docs = docs.join("\n");
        let (rooms, leaves) = docs.split_once("Leaves").expect("a list of rooms, then of leaves");
        let names = |text: &str| {
            let links = text.split("[`").skip(1);
            links.filter_map(|link| Some(link.split_once("`]")?.0.to_owned())).collect()
        };
        Self { rooms: names(rooms), leaves: names(leaves) }
    }

    /// Whether `user` may use `used`.
    fn allows(&self, user: &str, used: &str) -> bool {
        let place = |name: &str| self.rooms.iter().position(|room| room == name);
        match (place(user), place(used)) {
            (Some(user), Some(used)) => user <= used,
            (Some(_), None) => true,
            (None, used) => used.is_none(),
        }
    }
}

/// A word or a mark of a source file, with the number of its line.
type Token<'a> = (usize, &'a str);

/// The tokens of a source file, without space, comments and quoted text.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut line, mut rest) = (Vec::new(), 1, source);
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = quoted_len(rest) {
            len
        } else if word(first) {
            rest.find(|c| !word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(len);
        if len > 0 && !first.is_whitespace() && (word(first) || len == first.len_utf8()) {
            tokens.push((line, token));
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

/// The length of the string or character literal that begins here.
fn quoted_len(text: &str) -> Option<usize> {
    if let Some(raw) = text.strip_prefix('r').or_else(|| text.strip_prefix("br")) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = text.find('"')? + 1;
            return Some(body + text[body..].find(&close)? + close.len());
        }
    }
    let quote = text.chars().next().filter(|c| ['"', '\''].contains(c))?;
    let mut escaped = false;
    let close = |c: char| {
        let closes = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        closes
    };
    let end = 1 + text[1..].find(close)? + 1;
    // The quote in a lifetime such as `'a` begins no literal.
    let is_character = text[1..end - 1].chars().count() == 1 || text[1..].starts_with('\\');
    (quote == '"' || is_character).then_some(end)
}

/// One use of a module of this crate: the line, and the module's name.
type Use = (usize, String);

/// The uses of this crate's modules in a source file. `depth` is the number of modules around the file: that many
/// `super` lead to the crate.
fn uses(source: &str, depth: usize) -> Vec<Use> {
    let (tokens, mut found, mut at) = (tokens(source), Vec::new(), 0);
    while at < tokens.len() {
        let rest = &tokens[at..];
        if starts_with(rest, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            at += item_len(rest);
        } else if let Some(len) = root_len(rest, depth) {
            at += len;
            found.extend(names(&tokens[at..]));
        } else {
            at += 1;
        }
    }
    found
}

fn starts_with(tokens: &[Token<'_>], words: &[&str]) -> bool {
    tokens.len() >= words.len() && tokens.iter().zip(words).all(|((_, token), word)| token == word)
}

/// The number of tokens up to the end of the item that begins here.
fn item_len(tokens: &[Token<'_>]) -> usize {
    let mut depth = 0;
    let ends = |(_, token): &Token<'_>| {
        match *token {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        depth == 0 && ["}", ";"].contains(token)
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// The number of tokens of the `crate::`, or of the chain of `super::`, that begins here.
fn root_len(tokens: &[Token<'_>], depth: usize) -> Option<usize> {
    if starts_with(tokens, &["crate", ":", ":"]) {
        return Some(3);
    }
    let supers =
        tokens.chunks(3).take_while(|step| starts_with(step, &["super", ":", ":"])).count();
    (supers > 0 && supers >= depth).then_some(3 * supers)
}

/// The modules that stand after `crate::`: one, or several in braces.
fn names(tokens: &[Token<'_>]) -> Vec<Use> {
    let name = |(line, token): Token<'_>| (line, token.to_owned());
    if !starts_with(tokens, &["{"]) {
        return tokens.first().copied().map(name).into_iter().collect();
    }
    let (mut depth, mut found) = (0, Vec::new());
    for pair in tokens[..item_len(tokens)].windows(2) {
        match pair[0].1 {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 1 && ["{", ","].contains(&pair[0].1) && pair[1].1 != "}" {
            found.push(name(pair[1]));
        }
    }
    found
}

/// Each source file with the modules around it, without files that are compiled only for tests.
fn sources(directory: &Path, within: &[String]) -> Vec<(String, Vec<String>, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
        let modules = [within, &[name]].concat();
        if path.is_dir() {
            all.extend(sources(&path, &modules));
        } else if !["lib", "main", "tests"].contains(&modules[modules.len() - 1].as_str()) {
            let text = fs::read_to_string(&path).expect("UTF-8");
            all.push((path.to_string_lossy().into_owned(), modules, text));
        }
    }
    all
}

/// The uses in the code that break the order.
fn offences(order: &Order, sources: &[(String, Vec<String>, String)]) -> Vec<String> {
    let mut offences = Vec::new();
    for (file, modules, text) in sources {
        for (line, used) in uses(text, modules.len()) {
            if !order.allows(&modules[0], &used) {
                offences.push(format!("{file}:{line} uses {used}, which stands above it"));
            }
        }
    }
    offences.sort();
    offences
}

#[test]
fn no_module_uses_one_that_stands_above_it() {
    let order = Order::read(include_str!("../src/lib.rs"));
    let offences = offences(&order, &sources(Path::new("src"), &[]));
    assert!(offences.is_empty(), "against the order in src/lib.rs:\n{}", offences.join("\n"));
}

#[test]
fn every_module_stands_in_the_list_once() {
    let order = Order::read(include_str!("../src/lib.rs"));
    let listed: Vec<_> = order.rooms.iter().chain(&order.leaves).collect();
    let modules: BTreeSet<_> = sources(Path::new("src"), &[])
        .into_iter()
        .map(|(_, modules, _)| modules[0].clone())
        .collect();
    assert_eq!(listed.iter().copied().collect::<BTreeSet<_>>(), modules.iter().collect());
    assert_eq!(listed.len(), modules.len(), "one stands there twice");
}

#[test]
fn the_map_in_the_architecture_has_the_same_order() {
    let order = Order::read(include_str!("../src/lib.rs"));
    let (_, map) = include_str!("../ARCHITECTURE.md").split_once("## Source map").expect("a map");
    let cells = map.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned);
    let names: Vec<_> = names.filter(|name| name != "main").collect();
    assert_eq!(names, [order.rooms, order.leaves].concat());
}

#[test]
fn an_offence_is_found_wherever_it_hides() {
    let order = Order::read(
        "//! - [`top`] one, [`middle`] two\n//! - [`low`] three\n//!\n//! Leaves: [`leaf`], [`other`].",
    );
    let source = |modules: &[&str], text: &str| {
        let modules = modules.iter().map(ToString::to_string).collect::<Vec<_>>();
        (format!("{}.rs", modules.join("/")), modules, text.to_owned())
    };
    let code = "
        use crate::{leaf::{self, Thing}, low, middle::Own, top::{a, b}};
        // crate::top in a comment, and in \"crate::top\" text, is nothing.
        fn go() -> crate::low::A { select! { x = crate::top::go() => 'a' } }
        #[cfg(test)]
        mod tests { use crate::top; }
        #[cfg(test)]
        use crate::top;
        fn text<'a>(a: &'a str) { let _ = ('{', '\\'', \"\\\"crate::top\", r#\"crate::\"top\"#); super::super::top::go(); super::top::own() }";
    let sources = [
        source(&["middle", "inner"], code),
        source(&["low"], "use super::middle;"),
        source(&["leaf"], "use crate::{low::A, other::B};"),
    ];
    let expected = [
        "leaf.rs:1 uses low, which stands above it",
        "low.rs:1 uses middle, which stands above it",
        "middle/inner.rs:2 uses top, which stands above it",
        "middle/inner.rs:4 uses top, which stands above it",
        "middle/inner.rs:9 uses top, which stands above it",
    ];
    assert_eq!(offences(&order, &sources), expected);
}
