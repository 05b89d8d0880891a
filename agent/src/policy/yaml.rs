//! YAML text → a small tree with places. Owns what of YAML a policy may use: one document of mappings, lists and
//! scalars; no anchors, no aliases, no tags, no key twice, no deep nesting.
//!
//! The tree is built from the parser's events without recursion, so a hostile document costs at most its own size.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::{Mark, Problems, quote};

/// Bytes of a policy's text.
const SIZE: usize = 1024 * 1024;
/// Lists and mappings inside each other. The format needs 7.
const NESTING: usize = 16;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Mark,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A plain number, as it is written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Mark,
    pub(super) value: Node,
}

/// Reads the one document in `bytes`. `None`: it has no tree that could be checked further, and `problems` says why.
pub(super) fn load(bytes: &[u8], problems: &mut Problems) -> Option<Node> {
    if bytes.len() > SIZE {
        let message = format!("the document has {} bytes: a policy has at most {SIZE}", bytes.len());
        problems.add(Mark::START, "", message);
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let offset = error.valid_up_to();
            let message = format!("the text is not UTF-8 at byte offset {offset}: save it as UTF-8");
            let at = mark_of_offset(bytes, offset);
            problems.add(at, &key_at(bytes, at), message);
            return None;
        }
    };
    let mut builder = Builder { problems, open: Vec::new(), root: None, documents: 0, usable: true };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => {
                if !builder.take(event, span) {
                    return None;
                }
            }
            Err(error) => {
                let marker = *error.marker();
                let at = Mark { line: number(marker.line()).max(1), column: number(marker.col()) + 1 };
                builder.problems.add(at, "", format!("not well-formed YAML: {}", error.info()));
                return None;
            }
        }
    }
    let Builder { root, usable, .. } = builder;
    if usable && root.is_none() {
        problems.add(Mark::START, "", "the document is empty: a policy begins with apiVersion: tipstaff.dev/v1alpha1");
    }
    root.filter(|_| usable)
}

/// The place of a byte offset; what lies before it is UTF-8.
fn mark_of_offset(bytes: &[u8], offset: usize) -> Mark {
    let before = String::from_utf8_lossy(&bytes[..offset]);
    let last = before.rsplit('\n').next().unwrap_or_default();
    Mark { line: number(before.matches('\n').count()) + 1, column: number(last.chars().count()) + 1 }
}

/// The key whose value, or the mapping of which a key, stands at a place of a text that is not UTF-8; empty where that
/// cannot be told.
fn key_at(bytes: &[u8], at: Mark) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut unheard = Problems::new("");
    let mut builder = Builder { problems: &mut unheard, open: Vec::new(), root: None, documents: 0, usable: true };
    for event in Parser::new_from_str(&text) {
        let Ok((event, span)) = event else { break };
        let end = Mark { line: number(span.end.line()).max(1), column: number(span.end.col()) + 1 };
        if matches!(event, Event::Scalar(..)) && end > at {
            // what comes after the place is of a comment before it
            return if mark(span) <= at { builder.path() } else { String::new() };
        }
        if !builder.take(event, span) {
            break;
        }
    }
    String::new()
}

fn mark(span: Span) -> Mark {
    Mark { line: number(span.start.line()).max(1), column: number(span.start.col()) + 1 }
}

/// Lines and columns are fewer than the bytes of a document.
fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A list or mapping whose end was not seen yet.
struct Frame {
    at: Mark,
    path: String,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, lines: HashMap<String, u32>, key: Option<Key> },
}

/// A key that waits for its value. `text` is `None` where the key was refused: its value is dropped.
struct Key {
    at: Mark,
    text: Option<String>,
}

struct Builder<'p> {
    problems: &'p mut Problems,
    open: Vec<Frame>,
    root: Option<Node>,
    documents: u32,
    usable: bool,
}

impl Builder<'_> {
    /// Takes one event. False: nothing that follows is worth reading.
    fn take(&mut self, event: Event<'_>, span: Span) -> bool {
        let at = mark(span);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => true,
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.problems.add(at, "", "a second document begins here: put each policy into its own file");
                }
                self.documents == 1
            }
            Event::Alias(_) => {
                self.problems.add(at, &self.path(), "aliases are not read: write the value out");
                self.usable = false;
                self.place(Node { at, value: Value::Null });
                true
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_extras(at, anchor, tag.is_some());
                self.place(Node { at, value: scalar(text.into_owned(), style) });
                true
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_extras(at, anchor, tag.is_some());
                self.begin(at, Content::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_extras(at, anchor, tag.is_some());
                self.begin(at, Content::Map { entries: Vec::new(), lines: HashMap::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(frame) = self.open.pop() {
                    let value = match frame.content {
                        Content::List(nodes) => Value::List(nodes),
                        Content::Map { entries, .. } => Value::Map(entries),
                    };
                    self.place(Node { at: frame.at, value });
                }
                true
            }
        }
    }

    fn refuse_extras(&mut self, at: Mark, anchor: usize, tagged: bool) {
        if anchor > 0 {
            self.problems.add(at, &self.path(), "anchors are not read: remove the &name");
        }
        if tagged {
            self.problems.add(at, &self.path(), "tags are not read: remove the !tag, and quote what is text");
        }
    }

    fn begin(&mut self, at: Mark, content: Content) -> bool {
        if self.open.len() == NESTING {
            let message = format!("lists and mappings are nested more than {NESTING} deep: no policy is");
            self.problems.add(at, "", message);
            return false;
        }
        let path = self.path();
        self.open.push(Frame { at, path, content });
        true
    }

    /// The key path of the value that comes next.
    fn path(&self) -> String {
        let Some(frame) = self.open.last() else { return String::new() };
        match &frame.content {
            Content::List(nodes) => format!("{}[{}]", frame.path, nodes.len()),
            Content::Map { key: Some(Key { text: Some(text), .. }), .. } => join(&frame.path, text),
            Content::Map { .. } => frame.path.clone(),
        }
    }

    /// Puts a finished value where it belongs: into the root, a list, a key's value, or, first of two, a key.
    fn place(&mut self, node: Node) {
        let Some(frame) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut frame.content {
            Content::List(nodes) => nodes.push(node),
            Content::Map { entries, lines, key } => match key.take() {
                None => *key = Some(new_key(node, &frame.path, lines, self.problems)),
                Some(Key { at, text: Some(text) }) => {
                    // the parser puts an absent value somewhere behind its key
                    let place = if matches!(node.value, Value::Null) { at } else { node.at };
                    entries.push(Entry { key: text, at, value: Node { at: place, ..node } });
                }
                Some(Key { text: None, .. }) => {}
            },
        }
    }
}

fn new_key(node: Node, path: &str, lines: &mut HashMap<String, u32>, problems: &mut Problems) -> Key {
    let at = node.at;
    let text = match node.value {
        Value::Text(text) | Value::Number(text) => text,
        Value::Bool(value) => value.to_string(),
        Value::Null | Value::List(_) | Value::Map(_) => {
            problems.add(at, path, "a key must be a word: remove this one");
            return Key { at, text: None };
        }
    };
    if let Some(first) = lines.get(&text) {
        let message = format!("the key stands twice, first in line {first}: keep one");
        problems.add(at, &join(path, &text), message);
        return Key { at, text: None };
    }
    lines.insert(text.clone(), at.line);
    Key { at, text: Some(text) }
}

/// The path of `key` below `path`; a key that is no plain word is quoted.
pub(super) fn join(path: &str, key: &str) -> String {
    let plain = key.len() <= 64 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/".contains(&b));
    let key = if plain && !key.is_empty() { key.to_owned() } else { quote(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// The core schema of YAML 1.2, as far as a policy can tell its types apart.
fn scalar(text: String, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text);
    }
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        plain if is_number(plain) => Value::Number(text),
        _ => Value::Text(text),
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['-', '+']);
    let prefixed = |prefix, radix| digits.strip_prefix(prefix).is_some_and(|d| u64::from_str_radix(d, radix).is_ok());
    prefixed("0x", 16)
        || prefixed("0o", 8)
        || (digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && digits.contains(|c: char| c.is_ascii_digit())
            && digits.parse::<f64>().is_ok())
}
