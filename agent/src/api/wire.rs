//! What crosses the agent's sockets: requests by method name, replies, errors by error name.
//!
//! The call and reply envelopes are varlink's. Everything here is data: nothing is checked against sessions or
//! policies, and only what a type says about itself (a field, a known method) is checked while it is decoded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

pub use super::{
    error::{ApiError, Problem},
    reply::{
        Attached, Disarmed, Ended, Frozen, InheritedSocket, InheritedUnix, Narrowed, Renewed, Reply, Revoked,
        RevokedRow, Started, Stay, Stays, Took,
    },
    shown::{
        Context, Control, ControlState, Counters, EndingInfo, Ends, Event, EvidenceInfo, Inspect, LimitsInfo, Member,
        PolicyInfo, Principal, Probe, Ps, SessionRow, Spread, Status, StoreInfo, Verdict,
    },
};
use crate::evidence::Text;

/// Calls with their parameters, by method name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "method", content = "parameters")]
pub enum Request {
    /// The sessions that live: answers [`Ps`].
    #[serde(rename = "dev.tipstaff.Ps")]
    Ps {},
    /// One session in full: answers [`Inspect`].
    #[serde(rename = "dev.tipstaff.Inspect")]
    Inspect(SessionId),
    /// The evidence as a stream of [`Event`]s; asks for `more`.
    #[serde(rename = "dev.tipstaff.Events")]
    Events(Follow),
    /// How the agent is: answers [`Status`].
    #[serde(rename = "dev.tipstaff.Status")]
    Status {},
    /// What this host can enforce: answers [`Probe`].
    #[serde(rename = "dev.tipstaff.Probe")]
    Probe {},
    /// Makes the caller the first member of a new session: answers [`Started`].
    #[serde(rename = "dev.tipstaff.Run")]
    Run(Run),
    /// Makes running processes members of a new session: answers [`Attached`].
    #[serde(rename = "dev.tipstaff.Attach")]
    Attach(Attach),
    /// Ends a session and waits for it: answers [`Ended`].
    #[serde(rename = "dev.tipstaff.End")]
    End(End),
    /// Moves the end of a session's time to live: answers [`Renewed`].
    #[serde(rename = "dev.tipstaff.Renew")]
    Renew(Renew),
    /// Stops a session's members: answers [`Frozen`].
    #[serde(rename = "dev.tipstaff.Freeze")]
    Freeze(SessionId),
    /// Lets a session's members go on: answers [`Frozen`].
    #[serde(rename = "dev.tipstaff.Thaw")]
    Thaw(SessionId),
    /// Ends every session that is meant, and keeps it from starting again: answers [`Revoked`].
    #[serde(rename = "dev.tipstaff.Revoke")]
    Revoke(Revoke),
    /// What cannot start for a while: answers [`Stays`].
    #[serde(rename = "dev.tipstaff.Stays")]
    Stays {},
    /// Lifts a stay before its time: answers [`Stays`] with that one.
    #[serde(rename = "dev.tipstaff.Lift")]
    Lift(Lift),
    /// Gives a session a stricter scope: answers [`Narrowed`].
    #[serde(rename = "dev.tipstaff.Narrow")]
    Narrow(Narrow),
    /// Removes every trace of enforcement from the host: answers [`Disarmed`].
    #[serde(rename = "dev.tipstaff.Disarm")]
    Disarm {},
}

impl Request {
    /// Whether the method changes anything, so that only the operate socket takes it.
    #[must_use]
    pub fn operates(&self) -> bool {
        match self {
            Self::Ps {} | Self::Inspect(_) | Self::Events(_) | Self::Status {} | Self::Probe {} | Self::Stays {} => {
                false
            }
            Self::Run(_)
            | Self::Attach(_)
            | Self::End(_)
            | Self::Renew(_)
            | Self::Narrow(_)
            | Self::Freeze(_)
            | Self::Thaw(_)
            | Self::Revoke(_)
            | Self::Lift(_)
            | Self::Disarm {} => true,
        }
    }

    /// Whether the answer is a stream, so that the call has to ask for `more`.
    #[must_use]
    pub fn streams(&self) -> bool {
        matches!(self, Self::Events(_))
    }
}

/// Parameters of `Inspect`, `Freeze` and `Thaw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionId {
    /// The session's id or any unambiguous prefix of it.
    pub id: String,
}

/// Parameters of `Events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// Keep sending what happens after the history was sent.
    #[serde(default)]
    pub follow: bool,
}

/// Parameters of `End`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The session's id or any unambiguous prefix of it.
    pub id: String,
    /// The end reason to record, one of the closed list.
    pub reason: String,
}

/// Parameters of `Renew`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// The session's id or any unambiguous prefix of it.
    pub id: String,
    /// The new time to live from now (`15m`); absent: as long as it had at its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// What a `Revoke` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevokeBy {
    /// One session, by its id or any unambiguous prefix of it.
    Session,
    /// Sessions that act for a user id, be it that of the caller or of its login.
    Principal,
    /// Sessions under the policy of a name.
    Policy,
    /// Sessions that were started with a label, `key=value`.
    Label,
    /// Sessions that act with the credential of a fingerprint.
    Credential,
}

impl RevokeBy {
    /// As on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Principal => "principal",
            Self::Policy => "policy",
            Self::Label => "label",
            Self::Credential => "credential",
        }
    }
}

/// Parameters of `Revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// What is revoked.
    pub by: RevokeBy,
    /// Its id, user id, name, label or fingerprint.
    pub value: String,
    /// Say who would be hit, and hit nobody.
    #[serde(default)]
    pub dry_run: bool,
    /// For a principal, policy or credential: how long it cannot start again (`1h`); absent: it can at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stay: Option<String>,
}

/// Parameters of `Lift`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lift {
    /// The stay's id or any unambiguous prefix of it.
    pub id: String,
}

/// Parameters of `Narrow`: a policy, rules to remove, or a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Narrow {
    /// The session's id or any unambiguous prefix of it.
    pub id: String,
    /// The text of a policy that allows nothing that the session's does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Where the caller read it, for messages and evidence; never opened by the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_source: Option<String>,
    /// Ids of allow rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// The name of a phase of the session's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Parameters of `Run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The policy's text.
    pub policy: String,
    /// Where the caller read it, spelled as a [`Text`], for messages and evidence; never opened by the agent.
    pub policy_source: String,
    /// A shorter time to live than the policy's (`15m`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// When the credential that the caller acts with expires: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_expires: Option<String>,
    /// The fingerprint of that credential: its SHA-256, 64 lower-case hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Labels by which the session can be found and revoked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What the caller will become.
    pub command: Command,
    /// The caller's working directory, for evidence.
    pub cwd: Text,
    /// The caller's terminal, for evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Text>,
}

/// Parameters of `Attach`: a process or a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// A process, with all that descends from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// A cgroup by its path: what runs in it and below it, with all that descends from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The caller named it twice: its own login may be in it.
    #[serde(default)]
    pub twice: bool,
    /// The policy's text.
    pub policy: String,
    /// Where the caller read it, spelled as a [`Text`], for messages and evidence; never opened by the agent.
    pub policy_source: String,
    /// As in [`Run`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// As in [`Run`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_expires: Option<String>,
    /// As in [`Run`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// As in [`Run`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The command of a `Run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Absolute path of the program, found as execvp(3) finds it. The kernel judges the exec itself again.
    pub path: Text,
    /// The argument vector, for evidence and rules for the first argument; it may have been cut.
    pub argv: Vec<Text>,
    /// Whether `argv` was cut because of its size.
    #[serde(default)]
    pub argv_cut: bool,
}

/// A call as it stands on the wire.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallFrame<'a> {
    method: String,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    more: bool,
}

/// A decoded call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Method and parameters.
    #[serde(flatten)]
    pub request: Request,
    /// The caller takes more than one reply.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl Call {
    /// Decodes one frame.
    ///
    /// # Errors
    /// `BadRequest` that names the method and the offending part.
    pub fn decode(frame: &[u8]) -> Result<Self, ApiError> {
        let call: CallFrame = serde_json::from_slice(frame)
            .map_err(|error| ApiError::BadRequest { message: format!("this is not a call: {error}") })?;
        let request = decode_request(&call.method, call.parameters)?;
        if request.streams() && !call.more {
            let message = format!("{} answers with a stream: set \"more\"", call.method);
            return Err(ApiError::BadRequest { message });
        }
        Ok(Self { request, more: call.more })
    }
}

fn decode_request(method: &str, parameters: Option<&RawValue>) -> Result<Request, ApiError> {
    let raw = parameters.map_or("{}", RawValue::get);
    Ok(match method {
        "dev.tipstaff.Ps" => none(method, raw).map(|()| Request::Ps {})?,
        "dev.tipstaff.Inspect" => Request::Inspect(parse(method, raw)?),
        "dev.tipstaff.Events" => Request::Events(parse(method, raw)?),
        "dev.tipstaff.Status" => none(method, raw).map(|()| Request::Status {})?,
        "dev.tipstaff.Probe" => none(method, raw).map(|()| Request::Probe {})?,
        "dev.tipstaff.Run" => Request::Run(parse(method, raw)?),
        "dev.tipstaff.Attach" => Request::Attach(parse(method, raw)?),
        "dev.tipstaff.End" => Request::End(parse(method, raw)?),
        "dev.tipstaff.Renew" => Request::Renew(parse(method, raw)?),
        "dev.tipstaff.Freeze" => Request::Freeze(parse(method, raw)?),
        "dev.tipstaff.Thaw" => Request::Thaw(parse(method, raw)?),
        "dev.tipstaff.Revoke" => Request::Revoke(parse(method, raw)?),
        "dev.tipstaff.Stays" => none(method, raw).map(|()| Request::Stays {})?,
        "dev.tipstaff.Lift" => Request::Lift(parse(method, raw)?),
        "dev.tipstaff.Narrow" => Request::Narrow(parse(method, raw)?),
        "dev.tipstaff.Disarm" => none(method, raw).map(|()| Request::Disarm {})?,
        _ => return Err(ApiError::BadRequest { message: format!("there is no method {method:?}") }),
    })
}

fn parse<T: DeserializeOwned>(method: &str, raw: &str) -> Result<T, ApiError> {
    serde_json::from_str(raw)
        .map_err(|error| ApiError::BadRequest { message: format!("parameters of {method}: {error}") })
}

fn none(method: &str, raw: &str) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    parse::<Nothing>(method, raw).map(|_| ())
}
