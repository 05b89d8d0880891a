//! The addresses at which clouds hand out identities and credentials to whoever asks from the host. They are a class of
//! their own: denied in every kind but where a rule names the class or the very address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Every address of the class. The source of each is its provider's own documentation, or cloud-init's data source for
/// that provider, as named beside it.
pub const ADDRESSES: [IpAddr; 17] = [
    // Amazon EC2 (IMDS), Microsoft Azure, Google Cloud, Oracle Cloud, OpenStack, DigitalOcean, Hetzner, Akamai, IBM
    // and others: EC2 User Guide, "Instance metadata"
    v4(169, 254, 169, 254),
    // Amazon EC2 over IPv6: EC2 User Guide, "Instance metadata"
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]),
    // Amazon ECS, credentials of a task: ECS Developer Guide, "Task IAM role"
    v4(169, 254, 170, 2),
    // Amazon EKS Pod Identity agent: EKS User Guide, "Pod Identity"
    v4(169, 254, 170, 23),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),
    // Google Kubernetes Engine, metadata server of a node: GKE, "Workload Identity Federation"
    v4(169, 254, 169, 252),
    // Google Cloud over IPv6: Compute Engine, "View and query VM metadata"
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),
    // Microsoft Azure WireServer: "What is IP address 168.63.129.16"
    v4(168, 63, 129, 16),
    // Oracle Cloud over IPv6, and its earlier service: cloud-init, "Oracle"; OCI, "Instance metadata"
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]),
    v4(192, 0, 0, 192),
    // OpenStack over IPv6: cloud-init, "OpenStack"; Nova, "Metadata service"
    v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe]),
    // Alibaba Cloud: ECS, "Obtain instance metadata"
    v4(100, 100, 100, 200),
    v6([0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200]),
    // Tencent Cloud: CVM, "Viewing instance metadata"
    v4(169, 254, 0, 23),
    // Scaleway: cloud-init, "Scaleway"
    v4(169, 254, 42, 42),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]),
    // Akamai over IPv6: cloud-init, "Akamai"
    v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0x1]),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(words: [u16; 8]) -> IpAddr {
    let [a, b, c, d, e, f, g, h] = words;
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

/// Whether an address, not in mapped form, is of the class.
pub(super) fn contains(address: IpAddr) -> bool {
    ADDRESSES.contains(&address)
}

/// The address of the class that a network is, if it is exactly one.
pub(super) fn named_by(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr()).filter(|address| contains(*address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_address_names_one() {
        let named = |text: &str| named_by(text.parse().expect(text));
        assert_eq!(named("169.254.169.254/32"), Some(ADDRESSES[0]));
        assert_eq!(named("fd00:ec2::254/128"), Some(ADDRESSES[1]));
        assert_eq!(named("169.254.169.254/31"), None);
        assert_eq!(named("169.254.169.253/32"), None);
        let mut unique = ADDRESSES.to_vec();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), ADDRESSES.len());
    }
}
