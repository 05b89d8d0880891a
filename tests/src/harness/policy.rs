//! Policies as tests write them: real text, every rule with an id.

use std::fmt::{self, Display};

/// A policy, of the kind `ci` where nothing else is said.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    name: &'static str,
    kind: &'static str,
    limits: Vec<String>,
    net: Vec<String>,
    scope: Vec<String>,
    spec: Vec<String>,
    ttl: &'static str,
    mode: &'static str,
    strict: bool,
    agent_loss: Option<&'static str>,
    exec_allow: Vec<String>,
    exec_deny: Vec<String>,
    net_allow: Vec<String>,
    net_deny: Vec<String>,
    listen: bool,
}

impl Policy {
    pub(crate) fn new() -> Self {
        Self {
            name: "test",
            kind: "ci",
            limits: Vec::new(),
            net: Vec::new(),
            scope: Vec::new(),
            spec: Vec::new(),
            ttl: "10m",
            mode: "enforce",
            strict: false,
            agent_loss: None,
            exec_allow: Vec::new(),
            exec_deny: Vec::new(),
            net_allow: Vec::new(),
            net_deny: Vec::new(),
            listen: false,
        }
    }

    pub(crate) fn kind(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    /// A key of `spec.scope.net` with its value.
    pub(crate) fn net(mut self, line: impl Display) -> Self {
        self.net.push(line.to_string());
        self
    }

    /// A key of `spec.scope` with its value.
    pub(crate) fn scope(mut self, line: impl Display) -> Self {
        self.scope.push(line.to_string());
        self
    }

    /// Classes of privileges that may be used, and no others: `mount, chroot`.
    pub(crate) fn privileges(self, classes: &str) -> Self {
        self.scope(format!("privileges: {{ allow: [{classes}] }}"))
    }

    /// A key of `spec` with its value.
    pub(crate) fn spec(mut self, line: impl Display) -> Self {
        self.spec.push(line.to_string());
        self
    }

    pub(crate) fn ttl(mut self, ttl: &'static str) -> Self {
        self.ttl = ttl;
        self
    }

    pub(crate) fn name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// A line below `limits`, such as `idle: 2s`.
    pub(crate) fn limit(mut self, line: impl Display) -> Self {
        self.limits.push(line.to_string());
        self
    }

    pub(crate) fn observe(mut self) -> Self {
        self.mode = "observe";
        self
    }

    /// `on.agentLoss`
    pub(crate) fn agent_loss(mut self, what: &'static str) -> Self {
        self.agent_loss = Some(what);
        self
    }

    pub(crate) fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    pub(crate) fn allow(mut self, id: &str, path: impl Display) -> Self {
        self.exec_allow.push(format!("{{ path: \"{path}\", id: {id} }}"));
        self
    }

    /// A rule of `exec.allow` or `exec.deny` as it is written.
    pub(crate) fn exec_rule(mut self, effect: &str, rule: &str) -> Self {
        let list = if effect == "allow" { &mut self.exec_allow } else { &mut self.exec_deny };
        list.push(rule.to_owned());
        self
    }

    pub(crate) fn allow_dir(mut self, id: &str, path: impl Display) -> Self {
        self.exec_allow.push(format!("{{ dir: \"{path}\", id: {id} }}"));
        self
    }

    pub(crate) fn deny(mut self, id: &str, path: impl Display) -> Self {
        self.exec_deny.push(format!("{{ path: \"{path}\", id: {id} }}"));
        self
    }

    pub(crate) fn deny_dir(mut self, id: &str, path: impl Display) -> Self {
        self.exec_deny.push(format!("{{ dir: \"{path}\", id: {id} }}"));
        self
    }

    /// `ports` as in a policy (`443`, `8000-8100`), or empty for all.
    pub(crate) fn to(mut self, id: &str, prefix: &str, ports: impl Display) -> Self {
        self.net_allow.push(net_rule(id, prefix, &ports.to_string()));
        self
    }

    /// A rule of `net.allow` or `net.deny` as it is written.
    pub(crate) fn net_rule(mut self, effect: &str, rule: &str) -> Self {
        let list = if effect == "allow" { &mut self.net_allow } else { &mut self.net_deny };
        list.push(rule.to_owned());
        self
    }

    /// Every port, by one protocol: `tcp` or `udp`.
    pub(crate) fn by_protocol(mut self, id: &str, prefix: &str, protocol: &str) -> Self {
        self.net_allow.push(format!("{{ to: \"{prefix}\", proto: {protocol}, id: {id} }}"));
        self
    }

    /// Every local address and port may be bound and listened on.
    pub(crate) fn listening(mut self) -> Self {
        self.listen = true;
        self
    }

    /// The denial with the same arguments as [`Policy::to`].
    pub(crate) fn not_to(mut self, id: &str, prefix: &str, ports: impl Display) -> Self {
        self.net_deny.push(net_rule(id, prefix, &ports.to_string()));
        self
    }
}

fn net_rule(id: &str, prefix: &str, ports: &str) -> String {
    let ports = if ports.is_empty() { String::new() } else { format!(", ports: [\"{ports}\"]") };
    format!("{{ to: \"{prefix}\"{ports}, id: {id} }}")
}

impl Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "apiVersion: tipstaff.dev/v1alpha1\nkind: SessionPolicy\nmetadata:\n  name: {}", self.name)?;
        writeln!(f, "spec:\n  kind: {}\n  mode: {}\n  strict: {}", self.kind, self.mode, self.strict)?;
        if let Some(what) = self.agent_loss {
            writeln!(f, "  on: {{ agentLoss: {what} }}")?;
        }
        self.spec.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        writeln!(f, "  limits:\n    ttl: {}", self.ttl)?;
        self.limits.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        writeln!(f, "  scope:")?;
        self.scope.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        writeln!(f, "    exec:")?;
        rules(f, "allow", &self.exec_allow)?;
        rules(f, "deny", &self.exec_deny)?;
        writeln!(f, "    net:")?;
        if self.listen {
            writeln!(f, "      listen: allow")?;
        }
        self.net.iter().try_for_each(|line| writeln!(f, "      {line}"))?;
        rules(f, "allow", &self.net_allow)?;
        rules(f, "deny", &self.net_deny)
    }
}

fn rules(f: &mut fmt::Formatter<'_>, key: &str, rules: &[String]) -> fmt::Result {
    if rules.is_empty() {
        return writeln!(f, "      {key}: []");
    }
    writeln!(f, "      {key}:")?;
    rules.iter().try_for_each(|rule| writeln!(f, "        - {rule}"))
}
