//! The rules of a policy: `spec.scope.exec` and `spec.scope.net`. Owns their keys, their ids and the form of paths.

use std::{collections::BTreeMap, path::PathBuf};

use tipstaff_common::limits::PORT_RULES;

use super::{
    net::{join_ranges, parse_net, parse_ports},
    problem::{Problems, quote},
    types::{Effect, ExecRule, ExecTarget, NetRule, PortRange, Protocol, REASONS, RULES},
    walk::{At, Field, Fields, Keys, article, fields, list, text, word},
    yaml::{Node, Value},
};

const SCOPE: Keys = Keys { known: &["exec", "net"], later: &["unix", "privileges"] };
const EXEC: Keys = Keys { known: &["allow", "deny"], later: &["hold"] };
const NET: Keys = Keys { known: &["allow", "deny"], later: &["hold", "listen"] };
const EXEC_RULE: Keys = Keys { known: &["path", "dir", "id"], later: &["sha256", "subcommands", "mode"] };
const NET_RULE: Keys = Keys { known: &["to", "ports", "proto", "id"], later: &["mode"] };

const EFFECTS: [(&str, Effect); 2] = [("allow", Effect::Allow), ("deny", Effect::Deny)];
const PROTOCOLS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];

/// Bytes of a path: what the kernel takes, less the terminating 0.
const PATH_BYTES: usize = 4095;
/// Bytes of an id.
const ID_BYTES: usize = 64;

/// Ids seen so far, and the line of each.
type Ids = BTreeMap<String, u32>;

/// One rule's mapping, its place, its effect, and the id it has if it names none.
struct RuleAt<'a> {
    fields: Fields<'a>,
    path: String,
    effect: Effect,
    default_id: String,
}

/// Reads all rules; those with problems are left out.
pub(super) fn read(scope: Option<Field<'_>>, problems: &mut Problems) -> (Vec<ExecRule>, Vec<NetRule>) {
    let Some(field) = scope else { return (Vec::new(), Vec::new()) };
    let Some(scope) = fields(field.at(), SCOPE, problems) else { return (Vec::new(), Vec::new()) };
    let mut ids = Ids::new();
    let exec = section(&scope, "exec", EXEC, EXEC_RULE, problems);
    let net = section(&scope, "net", NET, NET_RULE, problems);
    let count = exec.len() + net.len();
    if count > RULES {
        let message = format!("has {count} rules: a policy has at most {RULES}; use directories and networks");
        problems.add(field.key, &field.path, message);
    }
    let exec = exec.iter().filter_map(|rule| exec_rule(rule, &mut ids, problems)).collect();
    let net = net.iter().filter_map(|rule| net_rule(rule, &mut ids, problems)).collect();
    (exec, net)
}

/// The rules of `exec` or `net`: those that allow, then those that deny, whatever their order in the text.
fn section<'a>(
    scope: &Fields<'a>,
    name: &'static str,
    keys: Keys,
    rule_keys: Keys,
    problems: &mut Problems,
) -> Vec<RuleAt<'a>> {
    let mut rules = Vec::new();
    let Some(field) = scope.get(name) else { return rules };
    let Some(section) = fields(field.at(), keys, problems) else { return rules };
    for (word, effect) in EFFECTS {
        let Some(field) = section.get(word) else { continue };
        let Some(nodes) = list(field.at(), problems) else { continue };
        for (index, node) in nodes.iter().enumerate() {
            let path = format!("{}[{index}]", field.path);
            if let Some(fields) = fields(At { node, path: &path }, rule_keys, problems) {
                rules.push(RuleAt { fields, path, effect, default_id: format!("{name}.{word}[{index}]") });
            }
        }
    }
    rules
}

fn exec_rule(rule: &RuleAt<'_>, ids: &mut Ids, problems: &mut Problems) -> Option<ExecRule> {
    let id = rule_id(rule, ids, problems);
    let target = match (rule.fields.get("path"), rule.fields.get("dir")) {
        (Some(field), None) => path(&field, problems).and_then(|path| program(path, &field, problems)),
        (None, Some(field)) => path(&field, problems).map(ExecTarget::Dir),
        (Some(_), Some(_)) => {
            problems.add(rule.fields.at, &rule.path, "has both path and dir: make two rules of it");
            None
        }
        (None, None) => {
            problems.add(rule.fields.at, &rule.path, "names nothing: add path: /usr/bin/… or dir: /opt/…");
            None
        }
    };
    Some(ExecRule { id: id?, effect: rule.effect, target: target? })
}

fn net_rule(rule: &RuleAt<'_>, ids: &mut Ids, problems: &mut Problems) -> Option<NetRule> {
    let id = rule_id(rule, ids, problems);
    let to = rule.fields.require("to", "10.20.0.0/16", problems).and_then(|field| {
        let written = text(field.at(), problems)?;
        parse_net(written).map_err(|message| problems.add(field.at().node.at, &field.path, message)).ok()
    });
    let ports = rule.fields.get("ports").map_or(Some(Vec::new()), |field| ports(&field, problems));
    let protocol = match rule.fields.get("proto") {
        None => Some(None),
        Some(field) => word(field.at(), &PROTOCOLS, problems).map(Some),
    };
    Some(NetRule { id: id?, effect: rule.effect, to: to?, ports: ports?, protocol: protocol? })
}

fn rule_id(rule: &RuleAt<'_>, ids: &mut Ids, problems: &mut Problems) -> Option<String> {
    let Some(field) = rule.fields.get("id") else { return Some(rule.default_id.clone()) };
    let id = text(field.at(), problems)?;
    let at = field.at().node.at;
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let message = if id.is_empty() || id.len() > ID_BYTES || !id.bytes().all(good) {
        format!("{} is no good id: write 1 to {ID_BYTES} of a-z, 0-9, '.', '_' and '-'", quote(id))
    } else if REASONS.iter().any(|(_, reason)| *reason == id) {
        format!("{} is a word of the evidence's own: choose another id", quote(id))
    } else if let Some(line) = ids.insert(id.to_owned(), at.line) {
        format!("{} is also the id of the rule in line {line}: choose another", quote(id))
    } else {
        return Some(id.to_owned());
    };
    problems.add(at, &field.path, message);
    None
}

fn path(field: &Field<'_>, problems: &mut Problems) -> Option<PathBuf> {
    let written = text(field.at(), problems)?;
    let message = if let Some(c) = written.chars().find(|c| c.is_control()) {
        format!("{} has the control character U+{:04X}: remove it", quote(written), u32::from(c))
    } else if !written.starts_with('/') {
        format!("{} is not absolute: begin it with /", quote(written))
    } else if written.split('/').any(|part| part == "..") {
        format!("{} has a .. component: write the path that it leads to", quote(written))
    } else if written.len() > PATH_BYTES {
        format!("has {} bytes: a path has at most {PATH_BYTES}", written.len())
    } else {
        return Some(PathBuf::from(written));
    };
    problems.add(field.at().node.at, &field.path, message);
    None
}

fn program(path: PathBuf, field: &Field<'_>, problems: &mut Problems) -> Option<ExecTarget> {
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        let message = "ends in /, as a directory does: name a program, or write dir instead of path";
        problems.add(field.at().node.at, &field.path, message);
        return None;
    }
    Some(ExecTarget::Path(path))
}

fn ports(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<PortRange>> {
    let nodes = list(field.at(), problems)?;
    if nodes.is_empty() {
        problems.add(field.key, &field.path, "is empty: list ports, or remove the key for every port");
        return None;
    }
    let read: Vec<_> = nodes.iter().enumerate().map(|(index, node)| port(node, index, field, problems)).collect();
    let ranges = join_ranges(read.into_iter().collect::<Option<Vec<_>>>()?);
    if ranges.len() > PORT_RULES {
        let message = format!("has {} separate ranges, the limit is {PORT_RULES}: join them", ranges.len());
        problems.add(field.key, &field.path, message);
        return None;
    }
    Some(ranges)
}

fn port(node: &Node, index: usize, field: &Field<'_>, problems: &mut Problems) -> Option<PortRange> {
    let result = match &node.value {
        Value::Number(written) | Value::Text(written) => parse_ports(written),
        _ => Err(format!("must be a port or a range, not {}", article(node))),
    };
    result.map_err(|message| problems.add(node.at, &format!("{}[{index}]", field.path), message)).ok()
}
