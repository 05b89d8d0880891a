//! What a packet says of itself: addresses, ports, protocol. Nearly every packet is plain – no options, no extension
//! headers – and its headers lie in one piece where the program may look at them itself; every other is read by the
//! kernel's helper, which costs a call for each piece.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes, programs::SkBuffContext};

use crate::{kernel, rules::Target};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const UDPLITE: u8 = 136;
/// Bits of TCP's flags.
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// `ETH_P_IP` and `ETH_P_IPV6` (`include/uapi/linux/if_ether.h`) as the kernel has them beside a packet.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;
/// Extension headers of IPv6 that are looked behind; a packet with more is not read.
const EXTENSIONS: u32 = 6;
/// Bytes of the plain headers: of IPv4 and IPv6, and of their first bytes that are read of UDP and TCP.
const PLAIN4: usize = 20;
const PLAIN6: usize = 40;
const PORTS: usize = 4;
const FLAGS: usize = 14;
/// Bytes of the headers of UDP and UDP-Lite, and of SCTP's common one.
const UDP_HEADER: u32 = 8;
const SCTP_HEADER: u32 = 12;

/// What a packet says of itself. Aligned as a [`Target`] is.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub struct Packet {
    from: [u8; 16],
    to: [u8; 16],
    from_port: u16,
    to_port: u16,
    /// `IPPROTO_*`
    pub protocol: u8,
    /// TCP's flags.
    flags: u8,
    /// 1: an association of SCTP, a connection of DCCP or an exchange of echoes begins with it; or it is of UDP-Lite.
    begins: u8,
    /// Always 0: the verifier wants every byte of what a function is given to have been written.
    pad: u8,
    /// Bytes after TCP's header.
    payload: u32,
    /// Bytes of its own headers: those of IP, with options, and of the protocols that are cut into segments.
    pub headers: u32,
}

impl Packet {
    /// Where it goes.
    #[inline(always)]
    pub const fn destination(&self) -> Target {
        Target { address: self.to, port: self.to_port, protocol: self.protocol }
    }

    /// Where it comes from.
    #[inline(always)]
    pub const fn source(&self) -> Target {
        Target { address: self.from, port: self.from_port, protocol: self.protocol }
    }

    /// The peer and the local port, for the rules on who comes in.
    #[inline(always)]
    pub const fn visitor(&self, out: bool) -> Target {
        let (address, port) = if out { (self.to, self.from_port) } else { (self.from, self.to_port) };
        Target { address, port, protocol: self.protocol }
    }

    /// Whether a connection of TCP begins with it.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.protocol == TCP && self.flags & (SYN | ACK) == SYN
    }

    /// Whether it begins what a program that sees connects is asked about, of these protocols.
    #[inline(always)]
    pub const fn begins(&self) -> bool {
        self.begins != 0 || self.opens()
    }

    /// Whether somebody begins an association of SCTP or a connection of DCCP with it.
    #[inline(always)]
    pub const fn calls(&self) -> bool {
        self.begins != 0 && (self.protocol == SCTP || self.protocol == DCCP)
    }

    /// Whether it is a datagram of UDP or UDP-Lite.
    #[inline(always)]
    pub const fn is_datagram(&self) -> bool {
        self.protocol == UDP || self.protocol == UDPLITE
    }

    /// Whether it carries what was written to a connection of TCP.
    #[inline(always)]
    pub const fn carries_data(&self) -> bool {
        self.protocol == TCP && self.payload != 0
    }

    /// Whether it goes to, or comes from, an address of loopback: 127.0.0.0/8, `::1`.
    #[inline(always)]
    pub fn is_for_loopback(&self, out: bool) -> bool {
        // SAFETY: as many bytes, integers only; a `Packet` is aligned, and its addresses lie at its beginning.
        let [a, b, c, d] = unsafe { *core::ptr::from_ref(if out { &self.to } else { &self.from }).cast::<[u32; 4]>() };
        let one = 1_u32.to_be();
        a | b == 0 && (c == 0xffff_u32.to_be() && d.to_ne_bytes()[0] == 127 || c == 0 && d == one)
    }

    /// Whether it says that a connection of TCP is gone, and no more.
    #[inline(always)]
    pub const fn is_bare_reset(&self) -> bool {
        self.protocol == TCP && self.flags & RST != 0 && self.payload == 0
    }
}

/// Reads `T` at `offset` from the network header.
#[inline(always)]
fn load<T: Default>(context: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = T::default();
    let place = core::ptr::from_mut(&mut value).cast::<c_void>();
    // SAFETY: the helper writes so many bytes or none.
    let result = unsafe { bpf_skb_load_bytes(context.cast(), offset, place, size_of::<T>() as u32) };
    (result == 0).then_some(value)
}

/// Addresses and ports; `None`: neither IPv4 nor IPv6, or cut short.
#[inline(always)]
pub fn parse(context: &SkBuffContext) -> Option<Packet> {
    let mut packet = Packet::default();
    (read_packet(context.skb.skb, &raw mut packet) == 1).then_some(packet)
}

/// Reads a packet's headers. 1: all that there are.
///
/// VERIFIER: as `rules::rules_on_address`: verified by itself, once for each program.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_packet(context: *mut __sk_buff, packet: *mut Packet) -> u32 {
    if packet.is_null() {
        return 0;
    }
    // SAFETY: not null; the caller passes its own.
    let packet = unsafe { &mut *packet };
    // what the kernel sends it as: a raw socket may have written any version into the packet itself
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, of the field's own width.
    let read = match unsafe { core::ptr::read_volatile(&raw const (*context).protocol) } {
        IPV4 => plain4(context, packet) || parse4(context, packet).is_some(),
        IPV6 => plain6(context, packet) || parse6(context, packet).is_some(),
        _ => false,
    };
    u32::from(read)
}

/// Where the packet's first bytes lie, if there are so many in one piece; null: there are not.
#[inline(always)]
fn in_one_piece(context: *mut __sk_buff, length: usize) -> *const u8 {
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, of the fields' own width, and the bound
    // checked on the very pointer that is read from.
    let (data, end) = unsafe {
        (core::ptr::read_volatile(&raw const (*context).data), core::ptr::read_volatile(&raw const (*context).data_end))
    };
    let (data, end) = (data as usize as *const u8, end as usize as *const u8);
    if data.wrapping_add(length) > end { core::ptr::null() } else { data }
}

/// Eight bytes at `AT`, which need not be aligned: the compiler would read them one by one.
///
/// # Safety
/// The verifier must know that they are there.
#[inline(always)]
unsafe fn eight<const AT: usize>(place: *const u8) -> u64 {
    let value;
    // SAFETY: the caller's; the processors that run this read what is not aligned.
    unsafe {
        asm!("{value} = *(u64 *)({place} + {at})", value = lateout(reg) value, place = in(reg) place, at = const AT,
            options(nostack, readonly));
    }
    value
}

/// As [`eight`], four bytes.
///
/// # Safety
/// The same.
#[inline(always)]
unsafe fn four<const AT: usize>(place: *const u8) -> u32 {
    let value: u64;
    // SAFETY: the caller's.
    unsafe {
        asm!("{value} = *(u32 *)({place} + {at})", value = lateout(reg) value, place = in(reg) place, at = const AT,
            options(nostack, readonly));
    }
    value as u32
}

/// An IPv4 packet without options, whole or its first fragment, of TCP or UDP. False: it is none, or not in one piece.
#[inline(always)]
fn plain4(context: *mut __sk_buff, packet: &mut Packet) -> bool {
    let place = in_one_piece(context, PLAIN4 + PORTS);
    if place.is_null() {
        return false;
    }
    // SAFETY: so many bytes are there. In the words the first byte of the packet is the lowest.
    let (first, fragment, from, to, ports) =
        unsafe { (eight::<0>(place), four::<6>(place), four::<12>(place), four::<16>(place), four::<PLAIN4>(place)) };
    let (version, protocol) = (first as u8, (fragment >> 24) as u8);
    if version != 0x45 || u16::from_be(fragment as u16) & 0x1fff != 0 || (protocol != UDP && protocol != TCP) {
        return false;
    }
    if protocol == TCP {
        let place = in_one_piece(context, PLAIN4 + FLAGS);
        if place.is_null() {
            return false;
        }
        let total = u32::from(u16::from_be((first >> 16) as u16));
        // SAFETY: so many bytes are there.
        let word = unsafe { four::<{ PLAIN4 + 10 }>(place) };
        tcp(word, packet, total.saturating_sub(PLAIN4 as u32));
    } else {
        packet.headers = UDP_HEADER;
    }
    packet.headers += PLAIN4 as u32;
    packet.from = kernel::mapped(from.to_le_bytes());
    packet.to = kernel::mapped(to.to_le_bytes());
    fill(packet, protocol, ports);
    true
}

/// As [`plain4`], an IPv6 packet without extension headers.
#[inline(always)]
fn plain6(context: *mut __sk_buff, packet: &mut Packet) -> bool {
    let place = in_one_piece(context, PLAIN6 + PORTS);
    if place.is_null() {
        return false;
    }
    // SAFETY: as above.
    let (first, ports) = unsafe { (eight::<0>(place), four::<PLAIN6>(place)) };
    // SAFETY: as above.
    let (from, to) = unsafe { ([eight::<8>(place), eight::<16>(place)], [eight::<24>(place), eight::<32>(place)]) };
    let protocol = (first >> 48) as u8;
    if first & 0xf0 != 0x60 || (protocol != UDP && protocol != TCP) {
        return false;
    }
    if protocol == TCP {
        let place = in_one_piece(context, PLAIN6 + FLAGS);
        if place.is_null() {
            return false;
        }
        let length = u32::from(u16::from_be((first >> 32) as u16));
        // SAFETY: as above.
        tcp(unsafe { four::<{ PLAIN6 + 10 }>(place) }, packet, length);
    } else {
        packet.headers = UDP_HEADER;
    }
    packet.headers += PLAIN6 as u32;
    (packet.from, packet.to) = (kernel::words(from), kernel::words(to));
    fill(packet, protocol, ports);
    true
}

#[inline(always)]
fn fill(packet: &mut Packet, protocol: u8, ports: u32) {
    packet.protocol = protocol;
    packet.from_port = u16::from_be(ports as u16);
    packet.to_port = u16::from_be((ports >> 16) as u16);
}

/// The two bytes after the first two of `word` are TCP's header length and flags; `length` is its header's and payload's.
#[inline(always)]
fn tcp(word: u32, packet: &mut Packet, length: u32) {
    let header = (word >> 20 & 0xf) * 4;
    packet.flags = (word >> 24) as u8;
    packet.headers = header;
    packet.payload = length.saturating_sub(header);
}

#[inline(always)]
fn parse4(context: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let header: [u8; 20] = load(context, 0)?;
    let [first, _, t0, t1, _, _, f0, f1, _, protocol, ..] = header;
    if first >> 4 != 4 {
        return None;
    }
    packet.from = kernel::mapped([header[12], header[13], header[14], header[15]]);
    packet.to = kernel::mapped([header[16], header[17], header[18], header[19]]);
    packet.protocol = protocol;
    let start = u32::from(first & 0xf) * 4;
    // of a fragment that is not the first, the address alone is known
    if u16::from_be_bytes([f0, f1]) & 0x1fff == 0 {
        transport(context, packet, start, u32::from(u16::from_be_bytes([t0, t1])))?;
    }
    Some(())
}

#[inline(always)]
fn parse6(context: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let fixed: [u8; 8] = load(context, 0)?;
    if fixed[0] >> 4 != 6 {
        return None;
    }
    packet.from = load(context, 8)?;
    packet.to = load(context, 24)?;
    packet.protocol = fixed[6];
    let total = 40 + u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let mut start = 40;
    for _ in 0..EXTENSIONS {
        // hop by hop, routing, destination options; fragment
        match packet.protocol {
            0 | 43 | 60 => {
                let [next, length]: [u8; 2] = load(context, start)?;
                packet.protocol = next;
                start += (u32::from(length) + 1) * 8;
            }
            44 => {
                let [next, _, o0, o1]: [u8; 4] = load(context, start)?;
                packet.protocol = next;
                if u16::from_be_bytes([o0, o1]) & 0xfff8 != 0 {
                    return Some(());
                }
                start += 8;
            }
            _ => break,
        }
    }
    if matches!(packet.protocol, 0 | 43 | 44 | 60) {
        // whose ports these are nobody knows who stops here
        return None;
    }
    transport(context, packet, start, total)
}

#[inline(always)]
fn transport(context: *mut __sk_buff, packet: &mut Packet, start: u32, total: u32) -> Option<()> {
    packet.begins = u8::from(begins(context, packet.protocol, start));
    packet.headers = start + if packet.protocol == SCTP { SCTP_HEADER } else { UDP_HEADER };
    if !matches!(packet.protocol, TCP | UDP | UDPLITE | SCTP | DCCP) {
        return Some(());
    }
    let [a, b, c, d]: [u8; 4] = load(context, start)?;
    packet.from_port = u16::from_be_bytes([a, b]);
    packet.to_port = u16::from_be_bytes([c, d]);
    if packet.protocol == TCP {
        let [offset, flags]: [u8; 2] = load(context, start + 12)?;
        packet.flags = flags;
        packet.headers = start + u32::from(offset >> 4) * 4;
        packet.payload = total.saturating_sub(packet.headers);
    }
    Some(())
}

/// Whether the packet can be the first that a socket sends to somebody: the first chunk of SCTP an INIT (RFC 9260, 3.3.2),
/// DCCP's type Request (RFC 4340, 5.1), an echo request. One that is too short for that is none.
#[inline(always)]
fn begins(context: *mut __sk_buff, protocol: u8, start: u32) -> bool {
    let (at, shift, kind) = match protocol {
        SCTP => (12, 0, 1),
        // the type is the bits 1 to 4 of the byte
        DCCP => (8, 1, 0),
        // each packet: a connect is seen by no program
        UDPLITE => return true,
        ICMP => (0, 0, 8),
        ICMP6 => (0, 0, 128),
        _ => return false,
    };
    load::<u8>(context, start + at).is_some_and(|byte| byte >> shift & if shift == 0 { 0xff } else { 0xf } == kind)
}
