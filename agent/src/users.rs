//! The users of the host, by its file of them. The file and not getpwent(3): the binary is static, and the C library's
//! name services are not.
#![forbid(unsafe_code)]

/// The name and id of each user in the text of passwd(5), `name:password:uid:…`; what is no such line is left out.
pub(crate) fn entries(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_users_are_left_out() {
        let text = "root:x:0:0:root:/root:/bin/sh\ndeploy:x:1001:1001::/:/bin/false\nbroken\n#a:x:b:\n:x:7:\n+::::::\n";
        assert_eq!(entries(text).collect::<Vec<_>>(), [("root", 0), ("deploy", 1001)]);
    }
}
