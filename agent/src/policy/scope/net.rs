//! `spec.scope.net`: destinations, resolvers, local addresses, peers.

use std::rc::Rc;

use tipstaff_common::limits::PORT_RULES;

use super::{EFFECTS, Ids, RuleAt, rule_id, rule_list, rules};
use crate::policy::{
    net::{join_ranges, parse_net, parse_ports},
    problem::Problems,
    traffic::{Access, Addresses, NetRule, PortRange, Protocol},
    types::Effect,
    walk::{At, Field, Fields, Keys, article, fields, list, text, word},
    yaml::{Node, Value},
};

const NET: Keys = Keys { known: &["allow", "deny", "resolver", "listen", "inbound"], later: &["hold"] };
const DESTINATION: Keys = Keys { known: &["to", "ports", "proto", "id"], later: &["mode"] };
const LOCAL: Keys = Keys { known: &["on", "ports", "proto", "id"], later: &["mode"] };
const PEER: Keys = Keys { known: &["from", "ports", "proto", "id"], later: &["mode"] };

/// The id of what `net.resolver` says.
pub(super) const RESOLVER: &str = "net.resolver";
/// Where resolvers listen.
const DNS: PortRange = PortRange { low: 53, high: 53 };

pub(super) fn read(scope: &Fields<'_>, ids: &mut Ids, problems: &mut Problems) -> (Vec<Rc<NetRule>>, Access, Access) {
    let nothing = || (Vec::new(), Access::default(), Access::default());
    let Some(field) = scope.get("net") else { return nothing() };
    let Some(section) = fields(field.at(), NET, problems) else { return nothing() };
    let found = rules(&section, "net", DESTINATION, problems);
    let mut net: Vec<_> = found.iter().filter_map(|rule| net_rule(rule, "to", ids, problems)).map(Rc::new).collect();
    net.extend(section.get("resolver").and_then(|field| resolver(&field, problems)).map(Rc::new));
    let listen = access(&section, "listen", "on", LOCAL, ids, problems);
    let inbound = access(&section, "inbound", "from", PEER, ids, problems);
    (net, listen, inbound)
}

fn resolver(field: &Field<'_>, problems: &mut Problems) -> Option<NetRule> {
    let effect = word(field.at(), &EFFECTS, problems)?;
    Some(NetRule {
        id: RESOLVER.to_owned(),
        effect,
        to: Addresses::Resolvers,
        ports: vec![DNS],
        protocols: vec![Protocol::Tcp, Protocol::Udp],
    })
}

/// `allow`, `deny`, or a list of what is allowed. `place` is the key of a rule's addresses.
fn access(net: &Fields<'_>, name: &str, place: &str, keys: Keys, ids: &mut Ids, problems: &mut Problems) -> Access {
    let Some(field) = net.get(name) else { return Access::default() };
    if let Value::List(_) = field.at().node.value {
        let found = rule_list(&field, &format!("net.{name}"), Effect::Allow, keys, problems);
        let rules = found.iter().filter_map(|rule| net_rule(rule, place, ids, problems)).map(Rc::new).collect();
        return Access { default: Some(Effect::Deny), rules };
    }
    if !matches!(field.at().node.value, Value::Text(_)) {
        let message = format!("must be allow, deny or a list of rules, not {}", article(field.at().node));
        problems.add(field.at().node.at, &field.path, message);
        return Access::default();
    }
    Access { default: word(field.at(), &EFFECTS, problems), rules: Vec::new() }
}

/// `place` is `to`, which must be there, or `on` or `from`, whose absence means every address.
fn net_rule(rule: &RuleAt<'_>, place: &str, ids: &mut Ids, problems: &mut Problems) -> Option<NetRule> {
    let id = rule_id(rule, ids, problems);
    let field = match place {
        "to" => rule.fields.require(place, "10.20.0.0/16", problems).map(Some),
        _ => Some(rule.fields.get(place)),
    };
    let to = field.and_then(|field| match field {
        None => Some(Addresses::Every),
        Some(field) => addresses(&field, place == "to", problems),
    });
    let ports = rule.fields.get("ports").map_or(Some(Vec::new()), |field| ports(&field, problems));
    let protocols = rule.fields.get("proto").map_or(Some(Vec::new()), |field| protocols(&field, problems));
    if let (Some(field), Some(protocols)) = (rule.fields.get("ports"), &protocols)
        && protocols.contains(&Protocol::Icmp)
    {
        problems.add(field.key, &field.path, "icmp has no ports: remove them, or make a rule of its own for icmp");
        return None;
    }
    Some(NetRule { id: id?, effect: rule.effect, to: to?, ports: ports?, protocols: protocols? })
}

fn addresses(field: &Field<'_>, destination: bool, problems: &mut Problems) -> Option<Addresses> {
    let written = text(field.at(), problems)?;
    if destination && written == "metadata" {
        return Some(Addresses::Metadata);
    }
    let net = parse_net(written).map_err(|message| problems.add(field.at().node.at, &field.path, message));
    net.ok().map(Addresses::Net)
}

fn protocols(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Protocol>> {
    let words = Protocol::ALL.map(|protocol| (protocol.as_str(), protocol));
    let Value::List(nodes) = &field.at().node.value else {
        return word(field.at(), &words, problems).map(|protocol| vec![protocol]);
    };
    if nodes.is_empty() {
        problems.add(field.key, &field.path, "is empty: name protocols, or remove the key for every protocol");
        return None;
    }
    let each = nodes.iter().enumerate().map(|(index, node)| {
        let path = format!("{}[{index}]", field.path);
        word(At { node, path: &path }, &words, problems)
    });
    let each: Vec<_> = each.collect();
    let mut protocols = each.into_iter().collect::<Option<Vec<_>>>()?;
    protocols.sort();
    protocols.dedup();
    Some(protocols)
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
