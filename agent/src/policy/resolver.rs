//! The host's resolvers, from the text of `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv4Addr};

/// The addresses of the `nameserver` lines, each once, without zones, in their order; IPv4 in its mapped form is IPv4.
/// Without such a line it is 127.0.0.1, as resolv.conf(5) has it.
#[must_use]
pub fn resolvers(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let written = words.next().unwrap_or_default();
        let address = written.split('%').next().unwrap_or_default();
        if let Ok(address) = address.parse::<IpAddr>().map(|a| a.to_canonical())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    if found.is_empty() {
        found.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_as_the_resolver_reads_them() {
        let read = |text: &str| resolvers(text).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let text = "# nameserver 192.0.2.1\nsearch example.org\nnameserver 127.0.0.53\n  nameserver\t10.0.0.2 extra\n";
        assert_eq!(read(text), "127.0.0.53 10.0.0.2");
        assert_eq!(
            read("nameserver fe80::1%eth0\nnameserver ::ffff:10.0.0.2\nnameserver 10.0.0.2\n"),
            "fe80::1 10.0.0.2"
        );
        assert_eq!(read("nameserver example.org\nnameserver\n;nameserver 10.0.0.1\n"), "127.0.0.1");
        assert_eq!(read(""), "127.0.0.1");
    }
}
