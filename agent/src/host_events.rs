//! What happens to the host and concerns every session: the wall clock is stepped, a processor comes online.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};

use crate::readable::Readable;

/// In 2200: the timer is there for its cancellation.
const FAR: Duration = Duration::from_secs(7_258_118_400);
/// The multicast group of the kernel's own events (`include/linux/kobject.h`, `lib/kobject_uevent.c`).
const KERNEL_EVENTS: u32 = 1;
/// Bytes of an event (`UEVENT_BUFFER_SIZE` and its header).
const EVENT: usize = 4096;
const ONLINE: &[u8] = b"online@/devices/system/cpu/cpu";

/// Tells when the wall clock is set: a timer on it that the kernel cancels then (timerfd_create(2),
/// `TFD_TIMER_CANCEL_ON_SET`; since Linux 3.0). Suspend counts as setting it.
pub struct ClockSteps {
    timer: TimerFd,
    cancelled: Readable,
}

impl ClockSteps {
    /// Watches the wall clock; needs a running tokio runtime.
    ///
    /// # Errors
    /// The kernel has no descriptor left.
    pub fn watch() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let cancelled = Readable::watch(timer.as_fd().try_clone_to_owned()?)?;
        let steps = Self { timer, cancelled };
        steps.arm()?;
        Ok(steps)
    }

    /// Waits until the clock was set.
    pub async fn stepped(&self) {
        self.cancelled.ready().await;
    }

    /// Waits for the next step from now on.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub fn arm(&self) -> io::Result<()> {
        // a cancelled timer says so once more when it is read or set
        let _ = nix::unistd::read(self.timer.as_fd(), &mut [0; 8]);
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        match self.timer.set(Expiration::OneShot(TimeSpec::from_duration(FAR)), flags) {
            Err(Errno::ECANCELED) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What became of the processors.
#[derive(Debug, PartialEq, Eq)]
pub enum Processors {
    /// This one came online.
    Online(u32),
    /// Events were lost: any may have.
    Any,
}

/// Tells when a processor comes online: the kernel's own events (netlink(7), `NETLINK_KOBJECT_UEVENT`).
pub struct ProcessorEvents {
    socket: OwnedFd,
    readable: Readable,
}

impl ProcessorEvents {
    /// Watches for events; needs a running tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn watch() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
        let readable = Readable::watch(socket.try_clone()?)?;
        Ok(Self { socket, readable })
    }

    /// Waits until there are events.
    pub async fn ready(&self) {
        self.readable.ready().await;
    }

    /// Takes the next event about a processor that came online, if there is one now.
    pub fn next(&self) -> Option<Processors> {
        let mut buffer = [0; EVENT];
        loop {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                // port 0 is the kernel; anybody may write to a netlink socket
                Ok((length, Some(from))) if from.pid() == 0 => {
                    if let Some(number) = online(&buffer[..length]) {
                        return Some(Processors::Online(number));
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Some(Processors::Any),
                Err(_) => return None,
            }
        }
    }
}

/// The processor that an event says came online.
fn online(event: &[u8]) -> Option<u32> {
    let header = event.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(header.strip_prefix(ONLINE)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_processor_that_comes_online_counts() {
        assert_eq!(online(b"online@/devices/system/cpu/cpu12\0ACTION=online\0SUBSYSTEM=cpu\0"), Some(12));
        assert_eq!(online(b"offline@/devices/system/cpu/cpu12\0ACTION=offline\0"), None);
        assert_eq!(online(b"online@/devices/system/memory/memory1\0"), None);
        assert_eq!(online(b"online@/devices/system/cpu/cpufreq\0"), None);
        assert_eq!(online(b""), None);
    }
}
