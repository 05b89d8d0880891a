//! Whether this kernel destroys sockets: tried on a connection of the agent's own.

use std::{
    fs,
    io::{self, Read as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use super::{Failure, diag::Diag, explain};
use crate::enforce::cgroup_of;

/// How long the peer may take to learn of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Opens a connection to itself on 127.0.0.1, finds it by its cgroup (`mount` is the cgroup2 mount), destroys one end, and
/// looks at what both ends are told.
///
/// # Errors
/// What did not come out as it should, in words.
pub fn prove_destroy(mount: &Path) -> Result<(), String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("no connection could be tried"))?;
    let address = listener.local_addr().map_err(failed("no connection could be tried"))?;
    let mut near = TcpStream::connect(address).map_err(failed("no connection could be tried"))?;
    let (mut far, client) = listener.accept().map_err(failed("no connection could be tried"))?;
    let own = cgroup_of(std::process::id(), mount).and_then(fs::metadata).map_err(failed("the agent's own cgroup"))?;
    let mut diag = Diag::here().map_err(failed("sock_diag(7) cannot be used"))?;
    let (family, protocol) = (libc::AF_INET, libc::IPPROTO_TCP);
    let number = |n: i32| u8::try_from(n).unwrap_or(0);
    let list = |diag: &mut Diag| {
        let found = diag.list(number(family), number(protocol), &[own.ino()]);
        let found = found.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => "this kernel does not list tcp sockets: it lacks tcp_diag".to_owned(),
            _ => format!("tcp sockets cannot be listed: {error}"),
        })?;
        Ok::<_, String>(found.into_iter().find(|s| s.local == client && s.remote == address))
    };
    let socket = list(&mut diag)?.ok_or("the canary's connection was not listed")?;
    diag.destroy(&socket).map_err(|error| explain(protocol, &Failure::Refused(error)))?;
    if list(&mut diag)?.is_some() {
        return Err("the canary's connection was destroyed and is still listed".into());
    }
    let told = |stream: &mut TcpStream| {
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.read(&mut [0]))
            .err()
            .and_then(|e| e.raw_os_error())
    };
    match (told(&mut near), told(&mut far)) {
        (Some(libc::ECONNABORTED), Some(libc::ECONNRESET)) => Ok(()),
        (near, far) => Err(format!("the ends of the canary's connection were told {near:?} and {far:?}")),
    }
}
