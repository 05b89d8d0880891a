//! Every problem that a text can have: its place, its key and its remedy.

use std::time::Duration;

use super::{EXAMPLE, document};
use crate::policy::{Kind, Mode, Problem, parse};

fn problems(text: impl AsRef<[u8]>) -> Vec<Problem> {
    match parse("p.yaml", text.as_ref()) {
        Ok(policy) => panic!("no problem in {}: {policy:?}", String::from_utf8_lossy(text.as_ref())),
        Err(problems) => problems,
    }
}

/// The one problem of `text` is at `place` (line:column and key) and its message contains `part`.
#[track_caller]
fn one(text: impl AsRef<[u8]>, place: &str, part: &str) {
    let shown: Vec<_> = problems(&text).iter().map(ToString::to_string).collect();
    let text = String::from_utf8_lossy(text.as_ref());
    assert_eq!(shown.len(), 1, "{shown:#?} in\n{text}");
    let found = shown[0].strip_prefix("p.yaml:").and_then(|rest| rest.strip_prefix(place));
    let message = found.and_then(|rest| rest.strip_prefix(": "));
    assert!(message.is_some_and(|m| m.contains(part)), "{} is not {place}: …{part}… in\n{text}", shown[0]);
}

/// As `one`, for a spec in flow style from line 4, column 7.
#[track_caller]
fn spec(spec: &str, place: &str, part: &str) {
    one(document(spec), place, part);
}

/// As `one`, for the only net or exec rule of the spec, which begins in line 5, column 1.
#[track_caller]
fn rule(list: &str, rule: &str, place: &str, part: &str) {
    let (section, effect) = list.split_once('.').expect(list);
    spec(&format!("{{kind: ci, limits: {{ttl: 1m}}, scope: {{{section}: {{{effect}: [\n{rule}\n]}}}}}}"), place, part);
}

#[test]
fn the_example_is_read_as_written() {
    let policy = parse("agent.yaml", EXAMPLE.as_bytes()).expect("the example");
    assert_eq!(
        (policy.name.as_str(), policy.kind, policy.mode, policy.strict),
        ("coding-agent", Kind::Agent, Mode::Enforce, false)
    );
    assert_eq!(policy.ttl, Duration::from_secs(5400));
    let rules: Vec<_> = policy.rules().collect();
    let net = ["mirror", "net.allow[1]", "own-tests", "no-backups", "net.resolver", "net.listen[0]", "unix.allow[0]"];
    assert_eq!(rules, [&["exec.allow[0]", "project-tools", "no-deploy"][..], &net].concat());
    assert_eq!(policy.rule_name(3), "mirror");
    assert_eq!(policy.rule_name(tipstaff_common::rule::REASON_LEAVES), "leaves");
    assert_eq!(policy.rule_name(10), "fault");
    let summary = serde_json::to_value(policy.summary()).expect("json");
    assert_eq!(summary["rules"][4]["what"], "2001:db8::/32 443,8000-8100");
    assert_eq!(summary["rules"][1]["what"], "dir /opt/project/bin");
    assert_eq!(summary["rules"][7]["what"], "the host's resolvers tcp,udp 53");
    assert_eq!(summary["rules"][9]["what"], "path /run/nscd/socket");
    assert_eq!(summary["sockets"], serde_json::json!(["netlink", "unix"]));
    assert_eq!(summary["privileges"], serde_json::json!([]));
    assert_eq!(summary["budgets"], serde_json::json!({"connects": 5000, "egressBytes": 200 << 20}));
    assert_eq!((&summary["ttl"], &summary["exec_default"]), (&"1h30m".into(), &"deny".into()));
}

#[test]
fn the_digest_is_of_the_bytes() {
    let digest = |text: String| parse("p", text.as_bytes()).map(|policy| policy.digest);
    let text = document("{kind: operator, limits: {ttl: 1m}}");
    let one = digest(text.clone()).expect("a policy");
    assert_eq!(one.len(), 64);
    assert_ne!(Ok(one.clone()), digest(format!("{text}#\n")));
    assert_eq!(Ok(one), digest(text));
}

#[test]
fn values_are_read_and_defaults_hold() {
    let read = |spec: &str| parse("p", document(spec).as_bytes()).expect(spec);
    for (word, kind) in
        [("service", Kind::Service), ("ci", Kind::Ci), ("operator", Kind::Operator), ("breakglass", Kind::Breakglass)]
    {
        assert_eq!(read(&format!("{{kind: {word}, limits: {{ttl: 1m}}}}")).kind, kind);
    }
    let policy =
        read("{kind: ci, mode: observe, strict: true, limits: {ttl: 500ms}, scope: {net: {deny: []}, exec: {}}}");
    assert_eq!((policy.mode, policy.strict, policy.ttl), (Mode::Observe, true, Duration::from_millis(500)));
    let scope = "{net: {deny: [{to: ::1}, {to: 10.0.0.0/8}], allow: [{to: 0.0.0.0/0}]}}";
    let policy = read(&format!("{{kind: ci, limits: {{ttl: 1m}}, scope: {scope}}}"));
    assert_eq!(policy.rules().collect::<Vec<_>>(), ["net.allow[0]", "net.deny[0]", "net.deny[1]"]);
}

#[test]
fn texts_that_are_no_document() {
    one(b"apiVersion: tipst\xffaff", "1:18: apiVersion", "not UTF-8 at byte offset 17");
    one(b"a: b\n\xc3\xa4\xc3: \xff", "2:2", "not UTF-8 at byte offset 7");
    one(b"a: b # \xff\nc: d\n", "1:8", "not UTF-8 at byte offset 7");
    one(b"a: [b, \xff, c]\n", "1:8: a[1]", "not UTF-8 at byte offset 7");
    one(b"a: [b, 'c\n  \xff\xff']\n", "2:3: a[1]", "not UTF-8 at byte offset 12");
    one(b"a: [b, {c: d, \xff: e}]\n", "1:15: a[1]", "not UTF-8 at byte offset 14");
    let text =
        document("{kind: ci, limits: {ttl: 1m}, scope: {exec: {deny: [{path: /a}, {path: /b?, id: x}]}}}").into_bytes();
    let text: Vec<u8> = text.into_iter().map(|byte| if byte == b'?' { 0xff } else { byte }).collect();
    one(text, "4:80: spec.scope.exec.deny[1].path", "not UTF-8");
    one("#".repeat(1024 * 1024 + 1), "1:1", "has 1048577 bytes: a policy has at most 1048576");
    one("", "1:1", "the document is empty");
    one("# nothing\n", "1:1", "the document is empty");
    one("a: [1, 2\nb: 3\n", "2:2", "not well-formed YAML");
    one("a: 'x\n", "1:4", "not well-formed YAML");
    one("a:\n\tb: 1\n", "2:2", "not well-formed YAML");
    one("[".repeat(17), "1:17", "nested more than 16 deep");
    one("- ".repeat(100_000), "1:33", "nested more than 16 deep");
    one("[1, 2]", "1:1", "must be a mapping with the keys apiVersion, kind, metadata, spec, not a list");
    one("plain words", "1:1", "not the text \"plain words\"");
    let twice = format!("{}---\n{}", document("{kind: ci, limits: {ttl: 1m}}"), document("{}"));
    one(twice, "5:1", "a second document begins here");
    one(format!("{}---\n", document("{kind: ci, limits: {ttl: 1m}}")), "5:1", "a second document begins here");
}

#[test]
fn yaml_that_a_policy_does_not_use() {
    spec("{kind: &k ci, limits: {ttl: 1m}}", "4:14: spec.kind", "anchors are not read");
    spec("{kind: !!str ci, limits: {ttl: 1m}}", "4:14: spec.kind", "tags are not read");
    spec("{kind: ci, limits: !x {ttl: 1m}}", "4:26: spec.limits", "tags are not read");
    spec("{kind: ci, kind: agent, limits: {ttl: 1m}}", "4:18: spec.kind", "stands twice, first in line 4: keep one");
    spec("{kind: ci, 'kind': {x: y}, limits: {ttl: 1m}}", "4:18: spec.kind", "stands twice");
    spec("{kind: ci, [a]: b, limits: {ttl: 1m}}", "4:18: spec", "a key must be a word");
    spec("{kind: ci, ? {a: b} : c, limits: {ttl: 1m}}", "4:20: spec", "a key must be a word");
    let shown = problems(document("{kind: &k ci, mode: *k, limits: {ttl: 1m}}"));
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert_eq!((shown[1].column, shown[1].key.as_str()), (27, "spec.mode"));
    assert!(shown[1].message.contains("aliases are not read"), "{}", shown[1]);
    let bomb = "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n";
    assert_eq!(problems(bomb).len(), 15);
}

#[test]
fn the_head_of_a_policy() {
    let good = "{kind: ci, limits: {ttl: 1m}}";
    let head = |head: &str| format!("{head}spec: {good}\n");
    one(
        head("kind: SessionPolicy\nmetadata: {name: a}\n"),
        "1:1: apiVersion",
        "is missing: add apiVersion: tipstaff.dev/v1alpha1",
    );
    one(
        head("apiVersion: v1\nkind: SessionPolicy\nmetadata: {name: a}\n"),
        "1:13: apiVersion",
        "is \"v1\": this version reads tipstaff.dev",
    );
    one(
        head("apiVersion: 1\nkind: SessionPolicy\nmetadata: {name: a}\n"),
        "1:13: apiVersion",
        "must be a text, not the number 1: put it in quotes",
    );
    one(
        head("apiVersion: tipstaff.dev/v1alpha1\nkind: Policy\nmetadata: {name: a}\n"),
        "2:7: kind",
        "this version reads SessionPolicy",
    );
    one(head("apiVersion: tipstaff.dev/v1alpha1\nmetadata: {name: a}\n"), "1:1: kind", "is missing");
    let head = "apiVersion: tipstaff.dev/v1alpha1\nkind: SessionPolicy\n";
    one(format!("{head}spec: {good}\n"), "1:1: metadata", "is missing");
    one(format!("{head}metadata:\nspec: {good}\n"), "3:1: metadata", "not nothing");
    one(format!("{head}metadata: {{}}\nspec: {good}\n"), "3:11: metadata.name", "is missing");
    one(
        format!("{head}metadata: {{name: a, labels: {{}}}}\nspec: {good}\n"),
        "3:21: metadata.labels",
        "not supported by this version",
    );
    for name in ["Upper", "-a", "a-", "a.b", "''", "ä", &"a".repeat(64)] {
        one(format!("{head}metadata: {{name: {name}}}\nspec: {good}\n"), "3:18: metadata.name", "is no good name");
    }
    one(format!("{head}metadata: {{name: 12}}\nspec: {good}\n"), "3:18: metadata.name", "put it in quotes");
    one(format!("{head}metadata: {{name: a}}\n"), "1:1: spec", "is missing");
    one(format!("{head}metadata: {{name: a}}\nspec: {good}\nstatus: {{}}\n"), "5:1: status", "not supported");
}

#[test]
fn a_review_is_a_day() {
    let text = |day: &str| document(&format!("{{kind: ci, limits: {{ttl: 1m}}, reviewBy: {day}}}"));
    let policy = parse("p", text("2027-03-01").as_bytes()).expect("a policy");
    let past = |time: &str| policy.review_is_past(time.parse().expect("a time"));
    assert!(!past("2027-02-28T23:00:00Z") && !past("2027-03-01T23:59:59Z") && past("2027-03-02T00:00:00Z"));
    for day in ["2027-02-29", "2027-3-1", "soon", "'2027-03-01T00:00:00'", "'20270301'"] {
        one(text(day), "4:47: spec.reviewBy", "is no date: write it as 2027-03-01");
    }
    one(text("20270301"), "4:47: spec.reviewBy", "put it in quotes");
}

#[test]
fn phases_keep_rules_that_allow() {
    let text = |phases: &str| {
        document(&format!(
            "{{kind: ci, limits: {{ttl: 1m}}, scope: {{exec: {{allow: [{{path: /a, id: a}}, {{path: /b}}], deny: \
             [{{path: /c, id: c}}]}}, net: {{resolver: allow}}}}, phases:\n{phases}\n}}"
        ))
    };
    let policy = parse("p", text("{ build: [a, 'exec.allow[1]', net.resolver], sign: [a], none: [] }").as_bytes());
    let policy = policy.expect("a policy");
    assert_eq!(policy.outside("build"), Some(Vec::new()));
    assert_eq!(policy.outside("sign"), Some(vec!["exec.allow[1]".to_owned(), "net.resolver".to_owned()]));
    assert_eq!(policy.outside("none").map(|ids| ids.len()), Some(3), "c denies, and stays");
    assert_eq!(policy.outside("other"), None);
    for (phases, place, part) in [
        ("[a]", "5:1: spec.phases", "must be a mapping from names to lists of rule ids, not a list"),
        ("{ }", "4:", "has 0 phases"),
        ("{ Sign: [a] }", "5:3: spec.phases.Sign", "is no good name"),
        ("{ sign: a }", "5:9: spec.phases.sign", "must be a list"),
        ("{ sign: [7] }", "5:10: spec.phases.sign[0]", "put it in quotes"),
        (
            "{ sign: [a, b] }",
            "5:13: spec.phases.sign[1]",
            "no rule has the id \"b\": write the id of a rule that allows",
        ),
        ("{ sign: [c] }", "5:10: spec.phases.sign[0]", "rule \"c\" denies, and so it stays in every phase"),
        ("{ sign: [a, a] }", "5:13: spec.phases.sign[1]", "stands here twice"),
    ] {
        let shown = problems(text(phases)).iter().map(ToString::to_string).collect::<Vec<_>>();
        let well = shown.len() == 1 && shown[0].starts_with(&format!("p.yaml:{place}")) && shown[0].contains(part);
        assert!(well, "{shown:?} is not {place}: …{part}…");
    }
    // a rule with a problem has no id: that is told, and not that its id is unknown
    let broken = "{kind: ci, limits: {ttl: 1m}, scope: {exec: {allow: [{path: a, id: a}]}}, phases: {x: [a]}}";
    assert_eq!(problems(document(broken)).len(), 1);
}

#[test]
fn the_keys_of_a_spec() {
    spec("{limits: {ttl: 1m}}", "4:7: spec.kind", "is missing: add kind: ci");
    spec(
        "{kind: bot, limits: {ttl: 1m}}",
        "4:14: spec.kind",
        "unknown value \"bot\": write service, ci, agent, operator, breakglass",
    );
    spec("{kind: ci, mode: off, limits: {ttl: 1m}}", "4:24: spec.mode", "write enforce, observe");
    spec("{kind: ci, mode: , limits: {ttl: 1m}}", "4:18: spec.mode", "not nothing: write a value, or remove the key");
    spec(
        "{kind: ci, strict: yes, limits: {ttl: 1m}}",
        "4:26: spec.strict",
        "must be true or false, not the text \"yes\"",
    );
    spec("{kind: ci}", "4:7: spec.limits.ttl", "is missing: every session ends; add limits: { ttl: 15m }");
    spec("{kind: ci, limits: {}}", "4:26: spec.limits.ttl", "is missing: add ttl: 15m");
    spec("{kind: ci, limits: 15m}", "4:26: spec.limits", "must be a mapping with the keys ttl, idle, ");
    spec("{kind: ci, limits: {ttl: 15}}", "4:32: spec.limits.ttl", "\"15\" has no unit");
    spec("{kind: ci, limits: {ttl: 1.5}}", "4:32: spec.limits.ttl", "\"1.5\" is no length of time");
    spec("{kind: ci, limits: {ttl: 0s}}", "4:32: spec.limits.ttl", "must be longer than zero");
    spec("{kind: ci, limits: {ttl: true}}", "4:32: spec.limits.ttl", "must be a text");
    spec("{kind: ci, limits: {ttl: 9000h}}", "4:32: spec.limits.ttl", "longer than 365d");
    spec("{kind: ci, limit: {}, limits: {ttl: 1m}}", "4:18: spec.limit", "did you mean limits?");
    spec(
        "{kind: ci, frobnicate: 1, limits: {ttl: 1m}}",
        "4:18: spec.frobnicate",
        "known here are kind, mode, strict, limits, scope, phases, budgets, on",
    );
    spec("{kind: ci, \"a\\nb\": 1, limits: {ttl: 1m}}", "4:18: spec.\"a\\nb\"", "unknown key \"a\\nb\"");
    spec("{kind: ci, on: {agentLoss: die}, limits: {ttl: 1m}}", "4:34: spec.on.agentLoss", "write continue, end");
    spec("{kind: ci, select: 1, limits: {ttl: 1m}}", "4:18: spec.select", "not supported by this version");
    spec("{kind: ci, limits: {ttl: 1m}, scope: {net: {hold: []}}}", "4:51: spec.scope.net.hold", "not supported");
    spec(
        "{kind: ci, limits: {ttl: 1m}, scope: {exec: {alow: []}}}",
        "4:52: spec.scope.exec.alow",
        "did you mean allow?",
    );
    spec(
        "{kind: ci, limits: {ttl: 1m}, scope: {exec: {allow: }}}",
        "4:52: spec.scope.exec.allow",
        "must be a list, not nothing",
    );
    spec("{kind: ci, limits: {ttl: 1m}, scope: }", "4:37: spec.scope", "not nothing");
}

#[test]
fn exec_rules() {
    let key = "5:8: spec.scope.exec.allow[0].path";
    rule("exec.allow", "{path: usr/bin/git}", key, "is not absolute: begin it with /");
    rule("exec.allow", "{path: ''}", key, "is not absolute");
    rule("exec.allow", "{path: /usr/../bin/git}", key, "has a .. component");
    rule("exec.allow", "{path: /usr/bin/..}", key, "has a .. component");
    rule("exec.allow", "{path: \"/usr\\0\"}", key, "control character U+0000");
    rule("exec.allow", "{path: /usr/bin/}", key, "ends in /");
    rule("exec.allow", &format!("{{path: /{}}}", "a".repeat(4095)), key, "has 4096 bytes: a path has at most 4095");
    rule("exec.allow", "{path: 7}", key, "must be a text, not the number 7");
    rule("exec.allow", "{path: [/a]}", key, "not a list: write one value");
    rule("exec.deny", "{dir: opt}", "5:7: spec.scope.exec.deny[0].dir", "is not absolute");
    rule(
        "exec.deny",
        " /usr/bin/curl",
        "5:2: spec.scope.exec.deny[0]",
        "must be a mapping with the keys path, dir, glob, class, sha256, verity, subcommands, id",
    );
    rule("exec.deny", "{id: x}", "5:1: spec.scope.exec.deny[0]", "names nothing: add path");
    rule("exec.deny", "{path: /a, dir: /b}", "5:1: spec.scope.exec.deny[0]", "has both path and dir");
    let digest = "ab".repeat(32);
    for (text, at, part) in [
        (
            format!("{{path: /a, sha256: {}}}", &digest[1..]),
            "5:20: spec.scope.exec.allow[0].sha256",
            "has 63 characters",
        ),
        (format!("{{path: /a, sha256: {}x}}", &digest[1..]), "5:20: spec.scope.exec.allow[0].sha256", "64 hexadecimal"),
        (format!("{{dir: /a, sha256: {digest}}}"), "5:19: spec.scope.exec.allow[0].sha256", "needs a path or a glob"),
        (format!("{{dir: /a, verity: {digest}}}"), "5:19: spec.scope.exec.allow[0].verity", "needs a path or a glob"),
        (format!("{{sha256: {digest}}}"), "5:10: spec.scope.exec.allow[0].sha256", "names no file by itself"),
        (format!("{{id: x, verity: {digest}}}"), "5:17: spec.scope.exec.allow[0].verity", "add path: /usr/bin/…"),
        ("{path: /a, verity: abc}".to_owned(), "5:20: spec.scope.exec.allow[0].verity", "has 3 characters"),
        (format!("{{path: /a, verity: 'sha512:{digest}'}}"), "5:20: spec.scope.exec.allow[0].verity", "is a SHA-512"),
        (
            format!("{{path: /a, sha256: {digest}, verity: {digest}}}"),
            "5:94: spec.scope.exec.allow[0].verity",
            "stands beside sha256",
        ),
        ("{glob: /a/**/b}".to_owned(), "5:8: spec.scope.exec.allow[0].glob", "has **: write dir"),
        ("{glob: /a/b}".to_owned(), "5:8: spec.scope.exec.allow[0].glob", "write path instead of glob"),
        ("{glob: a/*}".to_owned(), "5:8: spec.scope.exec.allow[0].glob", "is not absolute"),
        ("{glob: \"/a[\"}".to_owned(), "5:8: spec.scope.exec.allow[0].glob", "is no pattern"),
        ("{class: shells}".to_owned(), "5:9: spec.scope.exec.allow[0].class", "write one of loader, multi-call"),
        ("{path: /a, subcommands: []}".to_owned(), "5:25: spec.scope.exec.allow[0].subcommands", "is empty"),
        ("{dir: /a, subcommands: [x]}".to_owned(), "5:24: spec.scope.exec.allow[0].subcommands", "needs a path"),
        (
            "{path: /a, subcommands: [seventeen-letters]}".to_owned(),
            "5:26: spec.scope.exec.allow[0].subcommands[0]",
            "has 17 bytes: a subcommand has at most 16",
        ),
    ] {
        rule("exec.allow", &text, at, part);
    }
    rule(
        "exec.deny",
        &format!("{{path: /a, sha256: {digest}}}"),
        "5:20: spec.scope.exec.deny[0].sha256",
        "would let the same program with one more byte run",
    );
    for later in ["args", "mode"] {
        rule(
            "exec.allow",
            &format!("{{path: /a, {later}: x}}"),
            &format!("5:12: spec.scope.exec.allow[0].{later}"),
            "not supported by this version",
        );
    }
    for id in ["X", "''", "a b", "exec[0]", &"a".repeat(65)] {
        rule(
            "exec.allow",
            &format!("{{id: {id}, path: /a}}").replace("id: exec[0]", "id: 'exec[0]'"),
            "5:6: spec.scope.exec.allow[0].id",
            "is no good id",
        );
    }
    for id in ["default", "expired", "ended", "unresolved", "unlabelled", "leaves", "fault"] {
        rule("exec.allow", &format!("{{id: {id}, path: /a}}"), "5:6: spec.scope.exec.allow[0].id", "choose another id");
    }
    spec(
        "{kind: ci, limits: {ttl: 1m}, scope: {exec: {deny: [{path: /a, id: x}]},\n net: {allow: [{to: ::1, id: x}]}}}",
        "5:30: spec.scope.net.allow[0].id",
        "is also the id of the rule in line 4",
    );
}

#[test]
fn net_rules() {
    let to = "5:6: spec.scope.net.allow[0].to";
    rule("net.allow", "{to: 10.0.0.1/8}", to, "write 10.0.0.0/8");
    rule("net.allow", "{to: '2001:db8::1/32'}", to, "write 2001:db8::/32");
    rule("net.allow", "{to: example.com}", to, "names are not supported");
    rule("net.allow", "{to: 10}", to, "must be a text");
    rule("net.allow", "{to: '::ffff:0:0/95'}", to, "at least 96");
    rule("net.deny", "{ports: [1]}", "5:1: spec.scope.net.deny[0].to", "is missing");
    rule("net.deny", "{to: ::1, proto: ipx}", "5:18: spec.scope.net.deny[0].proto", "write tcp, udp, udplite, sctp");
    rule("net.deny", "{to: ::1, proto: [tcp, ipx]}", "5:24: spec.scope.net.deny[0].proto[1]", "write tcp, udp");
    rule("net.deny", "{to: ::1, proto: []}", "5:11: spec.scope.net.deny[0].proto", "is empty: name protocols");
    rule("net.deny", "{to: ::1, ports: [1], proto: icmp}", "5:11: spec.scope.net.deny[0].ports", "icmp has no ports");
    rule("net.deny", "{to: ::1, ports: [65536]}", "5:19: spec.scope.net.deny[0].ports[0]", "from 1 to 65535");
    rule("net.deny", "{to: metadata/8}", "5:6: spec.scope.net.deny[0].to", "is a name");
    rule("net.deny", "{to: ::1, id: net.resolver}", "5:15: spec.scope.net.deny[0].id", "choose another id");
    rule(
        "net.deny",
        "{to: ::1, ports: 443}",
        "5:18: spec.scope.net.deny[0].ports",
        "must be a list, not the number 443",
    );
    rule("net.deny", "{to: ::1, ports: []}", "5:11: spec.scope.net.deny[0].ports", "is empty");
    rule("net.deny", "{to: ::1, ports: [1, 0]}", "5:22: spec.scope.net.deny[0].ports[1]", "is no port");
    rule("net.deny", "{to: ::1, ports: [0x1bb]}", "5:19: spec.scope.net.deny[0].ports[0]", "is no port");
    rule("net.deny", "{to: ::1, ports: [9-1]}", "5:19: spec.scope.net.deny[0].ports[0]", "write \"1-9\"");
    rule("net.deny", "{to: ::1, ports: [{}]}", "5:19: spec.scope.net.deny[0].ports[0]", "not a mapping");
    rule("net.deny", "{to: ::1, port: [1]}", "5:11: spec.scope.net.deny[0].port", "did you mean ports?");
    let many: Vec<_> = (1..=33).map(|n| (2 * n).to_string()).collect();
    rule(
        "net.deny",
        &format!("{{to: ::1, ports: [{}]}}", many.join(",")),
        "5:11: spec.scope.net.deny[0].ports",
        "has 33 separate ranges",
    );
    let rules: Vec<_> = (0..16_385).map(|_| "{to: ::1}").collect();
    rule("net.deny", &rules.join(","), "4:37: spec.scope", "has 16385 rules: a policy has at most 16384");
}

#[test]
fn listening_and_coming_in() {
    let net = |keys: &str, place: &str, part: &str| {
        spec(&format!("{{kind: ci, limits: {{ttl: 1m}}, scope: {{net: {{\n {keys}\n}}}}}}"), place, part);
    };
    net("resolver: yes", "5:12: spec.scope.net.resolver", "write allow, deny");
    net("resolver: [::1]", "5:12: spec.scope.net.resolver", "must be a text, not a list");
    net("listen: all", "5:10: spec.scope.net.listen", "write allow, deny");
    net("listen: {allow: []}", "5:10: spec.scope.net.listen", "must be allow, deny or a list of rules, not a mapping");
    net("inbound:", "5:2: spec.scope.net.inbound", "must be allow, deny or a list of rules, not nothing");
    net("listen: [{to: ::1}]", "5:12: spec.scope.net.listen[0].to", "unknown key \"to\"");
    net("listen: [{on: metadata}]", "5:16: spec.scope.net.listen[0].on", "is a name");
    net("inbound: [{from: 10.0.0.1/8}]", "5:19: spec.scope.net.inbound[0].from", "write 10.0.0.0/8");
    net("inbound: [{from: 'fd00::1/8'}]", "5:19: spec.scope.net.inbound[0].from", "write fd00::/8");
    net("listen: [{on: 'fd00:77::9/64'}]", "5:16: spec.scope.net.listen[0].on", "write fd00:77::/64");
    net("inbound: [{ports: [0]}]", "5:21: spec.scope.net.inbound[0].ports[0]", "is no port");
    net("allow: [{to: ::1, id: a}],\n listen: [{id: a}]", "6:16: spec.scope.net.listen[0].id", "in line 5");
}

#[test]
fn unix_sockets_and_classes() {
    let scope = |keys: &str, place: &str, part: &str| {
        spec(&format!("{{kind: ci, limits: {{ttl: 1m}}, scope: {{\n {keys}\n}}}}"), place, part);
    };
    scope("unix: []", "5:8: spec.scope.unix", "must be a mapping");
    scope("unix: {allow: [run/x]}", "5:17: spec.scope.unix.allow[0]", "is not absolute");
    scope("unix: {allow: ['@']}", "5:17: spec.scope.unix.allow[0]", "has 0 bytes after the @");
    let long = "x".repeat(108);
    scope(&format!("unix: {{allow: ['@{long}']}}"), "5:17: spec.scope.unix.allow[0]", "has 108 bytes after the @");
    scope("unix: {deny: [{name: x}]}", "5:23: spec.scope.unix.deny[0].name", "begin it with @");
    scope("unix: {deny: [{id: x}]}", "5:16: spec.scope.unix.deny[0]", "names nothing");
    scope(
        "unix: {deny: [{path: /x, dir: /y}]}",
        "5:16: spec.scope.unix.deny[0]",
        "more than one of path, dir and name",
    );
    scope("unix: {deny: [{path: /x/../y}]}", "5:23: spec.scope.unix.deny[0].path", "has a .. component");
    scope("unix: {deny: [7]}", "5:16: spec.scope.unix.deny[0]", "must be a mapping");
    scope("sockets: [raw]", "5:11: spec.scope.sockets", "must be a mapping");
    scope("sockets: {allow: [tcp]}", "5:20: spec.scope.sockets.allow[0]", "write raw, packet, ping");
    scope("sockets: {allow: raw}", "5:19: spec.scope.sockets.allow", "must be a list");
    scope("privileges: [setuid]", "5:14: spec.scope.privileges", "must be a mapping");
    scope("privileges: {allow: [root]}", "5:23: spec.scope.privileges.allow[0]", "write setuid, capabilities, ptrace");
    scope("privileges: {deny: signal}", "5:21: spec.scope.privileges.deny", "must be a list");
}

#[test]
fn budgets() {
    let budget = |keys: &str, place: &str, part: &str| {
        spec(&format!("{{kind: ci, limits: {{ttl: 1m}}, budgets: {{\n {keys}\n}}}}"), place, part);
    };
    budget("connects: many", "5:12: spec.budgets.connects", "must be a whole number, not the text");
    budget("connects: -1", "5:12: spec.budgets.connects", "must be a whole number, not the number -1");
    budget("connects: 1.5", "5:12: spec.budgets.connects", "must be a whole number");
    budget("connects: 0", "5:12: spec.budgets.connects", "from 1 to 9223372036854775807, not 0: to allow none");
    budget("destinations: 65537", "5:16: spec.budgets.destinations", "from 1 to 65536");
    budget("egressBytes: 1MB", "5:15: spec.budgets.egressBytes", "\"1MB\" is no size");
    budget("egressBytes: 99999999TiB", "5:15: spec.budgets.egressBytes", "is no size");
    budget("egressBytes: []", "5:15: spec.budgets.egressBytes", "must be a size such as 200MiB, not a list");
    budget("egressBytesPerSecond: 1TiB", "5:24: spec.budgets.egressBytesPerSecond", "write a smaller number");
    budget("connect: 1", "5:2: spec.budgets.connect", "did you mean connects?");
    budget("denials: 0", "5:11: spec.budgets.denials", "not 0: to end at the first, write on: { violation: end }");
    budget("denials: few", "5:11: spec.budgets.denials", "must be a whole number, not the text");
    budget("execs: 5", "5:2: spec.budgets.execs", "not supported by this version");
    let text =
        "{kind: ci, limits: {ttl: 1m}, budgets: {connects: 10, egressBytes: 200MiB, egressBytesPerSecond: 4096}}";
    let read = parse("p", document(text).as_bytes()).expect(text).budgets;
    assert_eq!((read.connects, read.connects_per_second, read.destinations), (Some(10), None, None));
    assert_eq!((read.egress_bytes, read.egress_bytes_per_second), (Some(200 << 20), Some(4096)));
}

#[test]
fn all_problems_come_at_once_in_order() {
    let text = concat!(
        "apiVersion: v2\nkind: SessionPolicy\nspec:\n  kind: x\n  strict: 1\n  limits:\n    tll: 1m\n",
        "  scope:\n    net:\n      allow:\n        - { to: a }\n        - { to: 10.0.0.1/8, ports: [0, 70000] }\n",
    );
    let shown: Vec<_> = problems(text).iter().map(|p| format!("{}:{}: {}", p.line, p.column, p.key)).collect();
    let expected = [
        "1:1: metadata",
        "1:13: apiVersion",
        "4:9: spec.kind",
        "5:11: spec.strict",
        "7:5: spec.limits.tll",
        "7:5: spec.limits.ttl",
        "11:17: spec.scope.net.allow[0].to",
        "12:17: spec.scope.net.allow[1].to",
        "12:37: spec.scope.net.allow[1].ports[0]",
        "12:40: spec.scope.net.allow[1].ports[1]",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn the_list_of_problems_is_bounded() {
    let text: String = (0..5000).map(|n| format!("key{n}: 1\n")).collect();
    let problems = problems(text);
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[100].message, "4904 more problems are not listed: mend these first");
}
