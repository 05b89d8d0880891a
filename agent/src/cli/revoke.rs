//! `tipstaff revoke`: ends every session of a principal, of a policy, with a credential or a label, or one, and keeps a
//! principal, policy or credential from starting again for a while.

use std::{fs, io, path::Path, time::Duration};

use super::{
    Exit, Failure, Print, ask, credential, operate,
    print::{self, printable, short_id},
};
use crate::{
    api::wire::{Lift, Request, Revoke, RevokeBy, Revoked, RevokedRow, Stay, Stays},
    config::Config,
    users::entries,
};

/// Ending waits until the kernel has reaped every member.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) const HELP: &str = "\
A revoked principal, policy or credential cannot start again for the stay's time, 1h unless --stay says another; it survives a \
restart of the agent and of the host. Exit status: 1 if members are left (mode observe).";

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Flags {
    #[command(flatten)]
    what: What,
    /// How long a principal, policy or credential cannot start again
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = super::run::time_to_live, conflicts_with_all = ["no_stay", "list", "lift"])]
    stay: Option<String>,
    /// Let the principal, policy or credential start again at once
    #[arg(long, conflicts_with_all = ["list", "lift"])]
    no_stay: bool,
    /// Print who would be hit, and hit nobody
    #[arg(long, conflicts_with_all = ["list", "lift"])]
    dry_run: bool,
    #[command(flatten)]
    print: Print,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// One session, by its id or the beginning of it
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Sessions that act for a user: the caller's, or that of its login
    #[arg(long, value_name = "USER|UID")]
    principal: Option<String>,
    /// Sessions under the policy of this name
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Sessions that act with this credential: its SHA-256, or the file with it
    #[arg(long, value_name = "FINGERPRINT|FILE")]
    credential: Option<String>,
    /// Sessions that were started with this label
    #[arg(long, value_name = "KEY=VALUE")]
    label: Option<String>,
    /// Print what cannot start, and until when
    #[arg(long)]
    list: bool,
    /// Let what a stay holds start again
    #[arg(long, value_name = "STAY")]
    lift: Option<String>,
}

/// How long a stay is where nothing says another.
const STAY: &str = "1h";

pub(super) fn execute(config: &Config, flags: &Flags) -> Result<Exit, Failure> {
    if flags.what.list {
        let stays: Stays = ask(config)?.call(&Request::Stays {})?;
        print::show(flags.print.output, &stays, |stays| table(&stays.stays))?;
        return Ok(Exit::Ok);
    }
    if let Some(id) = &flags.what.lift {
        let lifted: Stays = operate(config, LIMIT)?.call(&Request::Lift(Lift { id: id.clone() }))?;
        print::show(flags.print.output, &lifted, |lifted| table(&lifted.stays))?;
        return Ok(Exit::Ok);
    }
    let request = Request::Revoke(request(flags, &config.paths.users)?);
    let revoked: Revoked = operate(config, LIMIT)?.call(&request)?;
    print::show(flags.print.output, &revoked, text)?;
    let left: u64 = revoked.sessions.iter().map(|row| row.members_left).sum();
    Ok(if left == 0 { Exit::Ok } else { Exit::Failed })
}

fn request(flags: &Flags, users: &Path) -> Result<Revoke, Failure> {
    let What { session, principal, policy, credential, label, .. } = &flags.what;
    let (by, value) = match (session, principal, policy, credential, label) {
        (Some(id), ..) => (RevokeBy::Session, id.clone()),
        (_, Some(user), ..) => (RevokeBy::Principal, user_id(user, users)?.to_string()),
        (_, _, Some(name), ..) => (RevokeBy::Policy, name.clone()),
        (.., Some(which), _) => (RevokeBy::Credential, credential::either(which)?),
        (.., Some(label)) => (RevokeBy::Label, label.clone()),
        _ => return Err(Failure::new(Exit::Usage, "revoke needs a session, principal, policy, credential or label")),
    };
    let stays = matches!(by, RevokeBy::Principal | RevokeBy::Policy | RevokeBy::Credential);
    if !stays && flags.stay.is_some() {
        let message = "--stay is for --principal, --policy and --credential: a session never starts again";
        return Err(Failure::new(Exit::Usage, message));
    }
    let stay = flags.stay.clone().unwrap_or_else(|| STAY.to_owned());
    let stay = (stays && !flags.no_stay).then_some(stay);
    Ok(Revoke { by, value, dry_run: flags.dry_run, stay })
}

/// A user's id, from its name or number.
fn user_id(user: &str, path: &Path) -> Result<u32, Failure> {
    if let Ok(id) = user.parse() {
        return Ok(id);
    }
    let shown = path.display();
    let users = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|error| Failure::new(Exit::Unable, format!("cannot read {shown}: {error}")))?,
    };
    let found = entries(&users).find(|(name, _)| *name == user);
    let (_, id) =
        found.ok_or_else(|| Failure::new(Exit::Usage, format!("{shown} has no user {user:?}: give the user id")))?;
    Ok(id)
}

fn text(revoked: &Revoked) -> String {
    let count = revoked.sessions.len();
    let mut text = match (revoked.dry_run, count) {
        (true, _) => format!("{count} sessions would be ended\n"),
        (false, _) => format!("{count} sessions ended\n"),
    };
    if count > 0 {
        let limit = print::command_limit();
        let row = |row: &RevokedRow| {
            let (id, policy) = (short_id(&row.id), printable(&row.policy));
            let command = print::command(&row.command, limit);
            // before anybody is ended, who is left is not known
            let remain = if revoked.dry_run { "-".to_owned() } else { row.members_left.to_string() };
            [id, policy, row.uid.to_string(), row.pid.to_string(), remain, command]
        };
        let rows = revoked.sessions.iter().map(row).collect();
        text.push_str(&print::table(["ID", "POLICY", "UID", "PID", "REMAIN", "COMMAND"], &[2, 3, 4], rows));
    }
    if let Some(stay) = &revoked.stay {
        let (by, value, until) = (printable(&stay.by), printable(&stay.value), printable(&stay.until));
        text.push_str(&format!("{by} {value} cannot start before {until} (stay {})\n", short_id(&stay.id)));
    }
    text
}

fn table(stays: &[Stay]) -> String {
    let row = |stay: &Stay| [short_id(&stay.id), printable(&stay.by), printable(&stay.value), printable(&stay.until)];
    print::table(["STAY", "BY", "VALUE", "UNTIL"], &[], stays.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_in_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("passwd");
        let missing = user_id("deploy", &path).expect_err("there is no file");
        assert!(missing.message.ends_with("has no user \"deploy\": give the user id"), "{}", missing.message);
        fs::write(&path, "root:x:0:0:root:/root:/bin/sh\ndeploy:x:1001:1001::/:/bin/false\n").expect("it is written");
        assert_eq!(user_id("deploy", &path).expect("a name"), 1001);
        assert!(user_id("dep", &path).is_err());
        assert_eq!(user_id("4242", &path).expect("a number"), 4242);
    }

    #[test]
    fn what_was_hit_and_what_stays() {
        let row = RevokedRow {
            id: "0123456789abcdef0123456789abcdef".into(),
            policy: "p".into(),
            uid: 7,
            pid: 42,
            command: vec!["a b".into()],
            members_left: 0,
        };
        let stay =
            Stay { id: "ff".repeat(16), by: "policy".into(), value: "p".into(), until: "2026-11-22T00:00:00Z".into() };
        let told = text(&Revoked { dry_run: false, sessions: vec![row], stay: Some(stay) });
        assert!(told.starts_with("1 sessions ended\nID ") && told.contains("'a b'"), "{told}");
        assert!(told.ends_with("policy p cannot start before 2026-11-22T00:00:00Z (stay ffffffffffff)\n"), "{told}");
    }
}
