//! Tests of the policy as a whole: every problem, the tables against the reference, and hostile texts.

mod agree;
mod kinds;
mod limits;
mod networks;
mod problems;
mod robust;
mod tables;

use super::{Effect, Policy, parse};

/// The documented example.
const EXAMPLE: &str = include_str!("../../../../docs/examples/agent.yaml");

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A policy of `kind` with `scope` as its scope, in flow style.
fn policy(kind: &str, scope: &str) -> Policy {
    let text = document(&format!("{{kind: {kind}, limits: {{ttl: 1m}}, scope: {scope}}}"));
    parse("test.yaml", text.as_bytes()).expect(&text)
}

/// A document with `spec` in line 4 from column 7.
fn document(spec: &str) -> String {
    format!("apiVersion: tipstaff.dev/v1alpha1\nkind: SessionPolicy\nmetadata: {{name: test}}\nspec: {spec}\n")
}

fn denied(by: &str) -> (Effect, String) {
    (Effect::Deny, by.to_owned())
}

fn allowed(by: &str) -> (Effect, String) {
    (Effect::Allow, by.to_owned())
}
