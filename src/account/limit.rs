//! How much memory this process may use, as the system tells: the least of the machine's and what its
//! control groups allow.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The account's part of what there is: the rest is for connections, streams and what is on its way.
const PART: u64 = 4;

/// Four of the largest messages: less would refuse what a fleet needs.
const LEAST: u64 = 64 << 20;

/// More than this waits at once only if it is an attack.
const MOST: u64 = 1 << 30;

/// The budget where none is configured.
pub fn default_budget() -> u64 {
    let limits = [
        machine(Path::new("/proc/meminfo")),
        groups(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")),
    ];
    let limit = limits.into_iter().flatten().min();
    limit.map_or(LEAST, |limit| (limit / PART).clamp(LEAST, MOST))
}

/// The memory of the machine.
fn machine(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The least limit of the process's control groups and those above them, of version 2 and 1.
///
/// In a container the group's path is often that of the host while only the container's own group is
/// mounted, at the root: so every level is tried, the root too.
fn groups(own: &Path, mounted: &Path) -> Option<u64> {
    let text = fs::read_to_string(own).ok()?;
    let files = text.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) =
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (mounted.to_owned(), "memory.max"),
            "memory" => (mounted.join("memory"), "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        levels(&root, path).map(|level| level.join(file)).collect()
    });
    // Without a limit version 2 says "max", and version 1 a number near 2^63.
    files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

fn levels<'a>(root: &'a Path, path: &'a str) -> impl Iterator<Item = PathBuf> + use<'a> {
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|level| root.join(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_limit(own: &str, limits: &[(&str, &str)]) -> Option<u64> {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("own"), own).expect("written");
        for (file, limit) in limits {
            let file = at("cgroup").join(file);
            fs::create_dir_all(file.parent().expect("below")).expect("created");
            fs::write(file, limit).expect("written");
        }
        groups(&at("own"), &at("cgroup"))
    }

    #[test]
    fn the_least_limit_of_all_levels_counts() {
        let limits =
            [("a/memory.max", "300\n"), ("a/b/memory.max", "max\n"), ("memory.max", "900\n")];
        assert_eq!(group_limit("0::/a/b\n", &limits), Some(300));
        assert_eq!(group_limit("0::/\n", &limits), Some(900));
        assert_eq!(group_limit("0::/of/the/host\n", &limits), Some(900));
        assert_eq!(group_limit("0::/a/b\n", &[]), None);
    }

    #[test]
    fn the_first_version_is_read_too() {
        let own = "12:cpu,cpuacct:/x\n4:memory:/docker/c\n0::/\n";
        let limits = [("memory/docker/c/memory.limit_in_bytes", "500\n")];
        assert_eq!(group_limit(own, &limits), Some(500));
        assert_eq!(group_limit(own, &[("memory/memory.limit_in_bytes", "700\n")]), Some(700));
    }

    #[test]
    fn this_machine_has_a_budget() {
        assert!((LEAST..=MOST).contains(&default_budget()));
    }
}
