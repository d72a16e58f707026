//! What a header defines: names of structures, of their members, and of enumerators.
//!
//! It reads preprocessed C as far as the public headers go: no bit fields, no pointers to functions.

use std::iter::Peekable;
use std::vec::IntoIter;

/// A structure or union.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    /// `struct tag` or `union tag`.
    pub(crate) name: String,
    /// The innermost members, as `offsetof` takes them.
    pub(crate) members: Vec<String>,
}

/// The lines that a preprocessed listing has from `header`, without definitions of macros.
pub(crate) fn own_text(listing: &str, header: &str) -> String {
    let mut inside = false;
    let mut text = String::new();
    for line in listing.lines() {
        if line.starts_with("# ") {
            inside = is_from(line, header);
        } else if inside && !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Does this line marker begin a part of `header`?
pub(crate) fn is_from(marker: &str, header: &str) -> bool {
    let name: String = marker.split_inclusive('"').take(2).collect();
    name.ends_with(&format!("/xen/{header}\""))
}

/// The structures that `text` defines, nested ones with a tag too.
pub(crate) fn definitions(text: &str) -> Vec<Definition> {
    let mut found = Vec::new();
    let mut tokens = tokens(text).into_iter().peekable();
    while let Some(token) = tokens.next() {
        if token == "struct" || token == "union" {
            structure(&token, &mut tokens, &mut found);
        }
    }
    found
}

/// The enumerators that `text` defines.
pub(crate) fn enumerators(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut tokens = tokens(text).into_iter().peekable();
    while let Some(token) = tokens.next() {
        if token != "enum" {
            continue;
        }
        tokens.next_if(|token| is_name(token));
        if tokens.next_if_eq("{").is_none() {
            continue;
        }
        let mut name_follows = true;
        for token in tokens.by_ref().take_while(|token| token != "}") {
            if name_follows {
                found.push(token);
                name_follows = false;
            } else if token == "," {
                name_follows = true;
            }
        }
    }
    found
}

type Tokens = Peekable<IntoIter<String>>;

/// After `struct` or `union`: a body, if there is one, goes to `found` when it has a tag. Gives its members.
fn structure(kind: &str, tokens: &mut Tokens, found: &mut Vec<Definition>) -> Option<Vec<String>> {
    let tag = tokens.next_if(|token| is_name(token));
    tokens.next_if_eq("{")?;
    let mut members = Vec::new();
    while tokens.next_if_eq("}").is_none() {
        member(tokens, &mut members, found);
    }
    if let Some(tag) = tag {
        found.push(Definition { name: format!("{kind} {tag}"), members: members.clone() });
    }
    Some(members)
}

/// One declaration of a body, with its `;`.
fn member(tokens: &mut Tokens, members: &mut Vec<String>, found: &mut Vec<Definition>) {
    let first = tokens.next().expect("a body ends with a brace");
    let inner = if first == "struct" || first == "union" { structure(&first, tokens, found) } else { None };
    let mut declared = Vec::new();
    let mut name = None;
    let mut in_brackets = false;
    loop {
        let token = tokens.next().expect("a declaration ends with a semicolon");
        match token.as_str() {
            ";" | "," => declared.extend(name.take()),
            // An array without a length takes no bytes.
            "[" if tokens.peek().is_some_and(|next| next == "]") => name = None,
            "[" => in_brackets = true,
            "]" => in_brackets = false,
            _ if is_name(&token) && !in_brackets => name = Some(token.clone()),
            _ => {}
        }
        if token == ";" {
            break;
        }
    }
    match inner {
        None => members.extend(declared),
        Some(inner) if declared.is_empty() => members.extend(inner),
        Some(inner) => {
            for outer in declared {
                members.extend(inner.iter().map(|inner| format!("{outer}.{inner}")));
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Words and single signs; texts are one token.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = if first == '"' {
            rest[1..].find('"').map_or(rest.len(), |end| end + 2)
        } else if word(first) {
            rest.find(|c| !word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}
