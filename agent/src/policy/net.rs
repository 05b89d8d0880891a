//! Networks and ports: how they are written, and how Linux sees them. One address has one form here: IPv4 in its
//! IPv6-mapped form is IPv4.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{problem::quote, traffic::PortRange};

/// Bits before the IPv4 address in its mapped form.
pub(super) const MAPPED_BITS: u8 = 96;

/// The loopback addresses that Linux may connect to where `address` is asked for: none, unless it is unspecified.
/// `::` becomes 127.0.0.1 on a socket that is bound to mapped IPv4.
pub(super) fn loopbacks(address: IpAddr) -> &'static [IpAddr] {
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    match address {
        _ if !address.is_unspecified() => &[],
        IpAddr::V4(_) => &[V4],
        IpAddr::V6(_) => &[V6, V4],
    }
}

/// Reads an address or a network.
pub(super) fn parse_net(text: &str) -> Result<IpNet, String> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_error| {
        let shown = quote(text);
        if address.contains('%') {
            format!("{shown} has a zone: leave the %zone out, rules are for every interface")
        } else if !address.contains(':') && address.contains(|c: char| c.is_ascii_alphabetic()) {
            format!("{shown} is a name: names are not supported by this version, give an address or a network")
        } else {
            format!("{shown} is no address: write one such as 10.20.0.0/16, 192.0.2.7 or \"2001:db8::/32\"")
        }
    })?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = match prefix {
        None => longest,
        Some(digits) => {
            parse_decimal(digits).and_then(|n| u8::try_from(n).ok()).filter(|n| *n <= longest).ok_or_else(|| {
                format!("{} has no good prefix length: write a number from 0 to {longest} after the /", quote(text))
            })?
        }
    };
    let (address, length) = unmapped(address, length).ok_or_else(|| {
        format!("{} covers mapped IPv4 and more: write the IPv4 network, or a prefix of at least 96", quote(text))
    })?;
    let net = IpNet::new(address, length).map_err(|error| format!("{} is no network: {error}", quote(text)))?;
    let right = net.trunc();
    if right != net {
        return Err(format!("{} has bits beyond its prefix: write {right}", quote(text)));
    }
    Ok(net)
}

/// The IPv4 form of a mapped network. `None`: the address is mapped and the prefix is too short to be IPv4's.
fn unmapped(address: IpAddr, length: u8) -> Option<(IpAddr, u8)> {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Some((IpAddr::V4(v4), length.checked_sub(MAPPED_BITS)?)),
            None => Some((address, length)),
        },
        IpAddr::V4(_) => Some((address, length)),
    }
}

/// Reads `443` or `8000-8100`.
pub(super) fn parse_ports(text: &str) -> Result<PortRange, String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let port = |digits| parse_decimal(digits).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    match (port(low), port(high)) {
        (Some(low), Some(high)) if low <= high => Ok(PortRange { low, high }),
        (Some(low), Some(high)) => Err(format!("the range {low}-{high} is backwards: write \"{high}-{low}\"")),
        _ => Err(format!("{} is no port: write a number from 1 to 65535, or a range \"8000-8100\"", quote(text))),
    }
}

/// Digits only, no leading zero: what other readers might take for octal is refused.
fn parse_decimal(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| plain)
}

/// Sorts ranges and joins those that touch.
pub(super) fn join_ranges(ranges: impl IntoIterator<Item = PortRange>) -> Vec<PortRange> {
    let mut joined: Vec<PortRange> = Vec::new();
    for range in ranges.into_iter().collect::<BTreeSet<_>>() {
        match joined.last_mut() {
            Some(last) if range.low <= last.high.saturating_add(1) => last.high = last.high.max(range.high),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_for_one_network() {
        for (text, net) in [
            ("10.20.0.0/16", "10.20.0.0/16"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ] {
            assert_eq!(parse_net(text).map(|n| n.to_string()).as_deref(), Ok(net), "{text}");
        }
    }

    #[test]
    fn bad_networks_name_the_remedy() {
        for (text, remedy) in [
            ("10.20.0.1/16", "write 10.20.0.0/16"),
            ("2001:db8::1/32", "write 2001:db8::/32"),
            ("::ffff:10.0.0.1/104", "write 10.0.0.0/8"),
            ("::ffff:0:0/90", "a prefix of at least 96"),
            ("10.0.0.0/33", "from 0 to 32"),
            ("10.0.0.0/08", "from 0 to 32"),
            ("10.0.0.0/+8", "from 0 to 32"),
            ("10.0.0.0/", "from 0 to 32"),
            ("::/129", "from 0 to 128"),
            ("010.0.0.1", "is no address"),
            ("10.0.0", "is no address"),
            ("", "is no address"),
            ("example.com", "names are not supported"),
            ("fe80::1%eth0", "leave the %zone out"),
        ] {
            let message = parse_net(text).expect_err(text);
            assert!(message.contains(remedy), "{text}: {message}");
        }
    }

    #[test]
    fn ports_are_numbers_and_ranges() {
        assert_eq!(parse_ports("443"), Ok(PortRange { low: 443, high: 443 }));
        assert_eq!(parse_ports("1-65535"), Ok(PortRange { low: 1, high: 65535 }));
        for text in ["0", "0-10", "65536", "x", "", "-", "1-", "-1", "1-2-3", "+1", "0443", "9-1", "1 - 2"] {
            assert!(parse_ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let range = |low, high| PortRange { low, high };
        let joined = join_ranges([
            range(90, 99),
            range(80, 89),
            range(1, 1),
            range(85, 95),
            range(100, 110),
            range(65535, 65535),
        ]);
        assert_eq!(joined, [range(1, 1), range(80, 110), range(65535, 65535)]);
    }
}
