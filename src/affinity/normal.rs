//! Different spellings of one place, brought to one: URLs of repositories, names of images, paths.

use percent_encoding::percent_decode_str;

/// Names that a checkout's directory has on every agent: they tell nothing of the project.
const PLACES: [&str; 15] = [
    ".",
    "app",
    "build",
    "builds",
    "checkout",
    "code",
    "context",
    "docker",
    "project",
    "repo",
    "s",
    "source",
    "src",
    "work",
    "workspace",
];

/// No repository's URL is longer; what is may have been cut, and with it the end of a password.
const MAX_URL_LEN: usize = 1024;

/// A name of so many hexadecimal digits was drawn by a program.
const RANDOM_LEN: usize = 12;

/// Whether a context is a repository or an archive elsewhere, as BuildKit's Dockerfile frontend tells.
pub(super) fn is_remote(context: &str) -> bool {
    let schemes = ["git://", "http://", "https://", "ssh://", "github.com/"];
    let user = context.split_once(':').and_then(|(authority, _)| authority.split_once('@'));
    let scp_like = user.is_some_and(|(user, host)| !user.contains('/') && !host.contains('/'));
    scp_like || schemes.iter().any(|scheme| context.starts_with(scheme))
}

/// The subdirectory that a git context names: `#REVISION:DIRECTORY` or `?subdir=DIRECTORY`.
pub(super) fn subdirectory(context: &str) -> Option<String> {
    let (address, fragment) = context.split_once('#').unwrap_or((context, ""));
    let query = address.split_once('?').map_or("", |(_, query)| query);
    let named = query.split('&').find_map(|part| part.strip_prefix("subdir="));
    let path = named.or_else(|| fragment.split_once(':').map(|(_revision, path)| path))?;
    directory(&percent_decode_str(path.trim_matches('/')).decode_utf8_lossy())
}

/// `https://user@Host:8443/team/app.git?x#y` and `git@host:team/app` both become `host/team/app`; `None`
/// where a part of a password could be taken for one of the name.
///
/// Without the port: a host has one for each scheme, and two servers on one host are rare.
pub(super) fn repository(url: &str) -> Option<String> {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if url.len() > MAX_URL_LEN || url.contains(odd) {
        return None;
    }
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    if scheme.is_some_and(|scheme| !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return None;
    }
    // Without a scheme it is scp-like, `user@host:path`; or an address such as `github.com/team/app`.
    let ends: &[char] = if scheme.is_some() { &['/', '?', '#'] } else { &[':', '/', '?', '#'] };
    let (authority, path) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
    if hides_user(authority, path, scheme.is_some()) {
        return None;
    }
    let path = path.split(['#', '?']).next().unwrap_or_default();
    let path = path.strip_prefix([':', '/']).unwrap_or(path);
    let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    let host = without_port(host)?.to_ascii_lowercase();
    let path = percent_decode_str(path).decode_utf8_lossy();
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    if let Some(name) = azure(&host, path) {
        return Some(name);
    }
    // Azure DevOps Server takes any case, as Azure Repos does.
    let any_case = path.split('/').any(|part| part.eq_ignore_ascii_case("_git"));
    Some(if any_case {
        format!("{host}/{}", path.to_lowercase())
    } else {
        format!("{host}/{path}")
    })
}

/// Whether `authority` may be but the beginning of a user and a password that hold what ends it, as in
/// `https://user:pa/ss@host/team/app`.
///
/// A tag such as `#app@1.0` is none: behind a user comes a host with a path.
fn hides_user(authority: &str, path: &str, scheme: bool) -> bool {
    match path.rsplit_once('@') {
        Some((_before, after)) => after.contains(['/', ':']) || !scheme && !authority.contains('@'),
        None => false,
    }
}

/// `None` if what stands behind the name is no port.
fn without_port(host: &str) -> Option<&str> {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(name),
        // The colons of an IPv6 address are followed by a bracket.
        Some(_) if !host.ends_with(']') => None,
        _ => Some(host),
    }
}

/// The three addresses that Azure Repos gives one repository, as the one it shows today.
fn azure(host: &str, path: &str) -> Option<String> {
    let path = path.to_ascii_lowercase();
    let (organisation, project, repository) = if host == "ssh.dev.azure.com" {
        let mut parts = path.strip_prefix("v3/")?.splitn(3, '/');
        (parts.next()?.to_owned(), parts.next()?, parts.next()?)
    } else if let Some(organisation) = host.strip_suffix(".visualstudio.com") {
        let path = path.strip_prefix("defaultcollection/").unwrap_or(&path);
        let (project, repository) = git_path(path)?;
        (organisation.to_owned(), project, repository)
    } else if host == "dev.azure.com" {
        let (organisation, rest) = path.split_once('/')?;
        let (project, repository) = git_path(rest)?;
        (organisation.to_owned(), project, repository)
    } else {
        return None;
    };
    Some(format!("dev.azure.com/{organisation}/{project}/_git/{repository}"))
}

/// `PROJECT/_git/REPOSITORY`, or `_git/REPOSITORY` where the project has the same name.
fn git_path(path: &str) -> Option<(&str, &str)> {
    match path.strip_prefix("_git/") {
        Some(repository) => Some((repository, repository)),
        None => path.split_once("/_git/"),
    }
}

/// `Registry/team/app:tag@sha256:…` becomes `registry/team/app`.
pub(super) fn image(reference: &str) -> String {
    let name = reference.trim().split('@').next().unwrap_or_default();
    let end = match (name.rfind(':'), name.rfind('/')) {
        (Some(colon), slash) if slash.is_none_or(|slash| colon > slash) => colon,
        _ => name.len(),
    };
    name[..end].to_ascii_lowercase()
}

/// The same without the registry: development and production have one of their own.
pub(super) fn image_anywhere(reference: &str) -> String {
    let name = image(reference);
    match name.split_once('/') {
        // What makes a first part a registry for every tool that reads image names.
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            rest.to_owned()
        }
        _ => name,
    }
}

/// A directory of a repository with `/` between its parts, or nothing for the top and for a path of
/// one machine.
pub(super) fn directory(path: &str) -> Option<String> {
    let path = path.replace('\\', "/");
    let drive = path.as_bytes().get(1) == Some(&b':');
    if path.starts_with('/') || drive || path.split('/').any(|part| part == "..") {
        return None;
    }
    let path = path.trim_start_matches("./").trim_end_matches('/');
    Some(path.to_owned()).filter(|path| !path.is_empty() && path != ".")
}

/// The directory's name in a shared key of buildx (`NAME:NODE`), unless every agent's is called so or
/// the name was drawn.
///
/// The node is left out: it is drawn anew on each new agent. So is the number that Jenkins gives the
/// second checkout of a job (`NAME@2`).
pub(super) fn shared_key(shared_key: &str) -> Option<String> {
    let name = shared_key.rsplit_once(':').map_or(shared_key, |(name, _node)| name);
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name = name.split('@').next().unwrap_or_default();
    let plain = name.to_ascii_lowercase();
    let telling = name.bytes().any(|byte| byte.is_ascii_alphabetic())
        && name.len() > 1
        && !PLACES.contains(&plain.as_str())
        && !is_drawn(&plain);
    telling.then(|| name.to_owned())
}

/// Names of `mktemp` and its kin, digests and UUIDs.
fn is_drawn(name: &str) -> bool {
    let digits = || name.bytes().filter(|byte| *byte != b'-');
    name.starts_with("tmp")
        || name.starts_with("temp")
        || digits().count() >= RANDOM_LEN && digits().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_repository_has_one_name() {
        for (url, name) in [
            ("git@github.com:team/app.git", "github.com/team/app"),
            ("ssh://git@GitHub.com:22/team/app", "github.com/team/app"),
            ("https://x:token@github.com:443/team/app.git/", "github.com/team/app"),
            ("https://tfs.example:8080/tfs/Main/_git/App", "tfs.example/tfs/main/_git/app"),
            ("ssh://tfs.example:22/tfs/Main/_git/app", "tfs.example/tfs/main/_git/app"),
            ("ssh://git@git.example:2222/Team/app.git", "git.example/Team/app"),
            ("https://gitlab-ci-token:x@git.example/Team/app.git", "git.example/Team/app"),
            ("git://[2001:db8::1]:9418/app", "[2001:db8::1]/app"),
            ("git://[2001:db8::1]/app", "[2001:db8::1]/app"),
            (
                "https://org@dev.azure.com/org/My%20Proj/_git/app",
                "dev.azure.com/org/my proj/_git/app",
            ),
            ("git@ssh.dev.azure.com:v3/org/My%20Proj/app", "dev.azure.com/org/my proj/_git/app"),
            (
                "https://org.visualstudio.com/DefaultCollection/My%20Proj/_git/app",
                "dev.azure.com/org/my proj/_git/app",
            ),
            ("https://org.visualstudio.com/_git/app", "dev.azure.com/org/app/_git/app"),
            ("https://dev.azure.com/org", "dev.azure.com/org"),
            ("github.com/team/app.git#main", "github.com/team/app"),
            ("https://git.example/team/app#pkg@1.0", "git.example/team/app"),
            ("git@git.example:team/app#pkg@1.0", "git.example/team/app"),
        ] {
            assert_eq!(repository(url).as_deref(), Some(name), "{url}");
        }
    }

    #[test]
    fn what_may_be_a_part_of_a_password_is_no_name() {
        for url in [
            "https://user:se/cret@host/r.git",
            "https://user:se#cret@host/r.git",
            "https://user:se?cret@host/r.git",
            "https://us/er@host/r.git",
            "https://u:p@ss/word@host/r",
            "https://user:secret",
            "user:se/cret@host:r",
            "user:se@host:r",
            "us://er@host:r/",
            "https://us er:x@host/r",
        ] {
            assert_eq!(repository(url), None, "{url}");
        }
    }

    proptest! {
        /// Whatever stands in front of the last `@`, and however it is written.
        #[test]
        fn no_part_of_a_user_or_a_password_is_in_a_name(
            user in "[A-Z:/?#@%.\\[\\] -]{0,24}[A-Z][A-Z:/?#@%.\\[\\] -]{0,24}",
            scheme in prop::sample::select(vec!["https://", "ssh://", "git://", ""]),
            end in prop::sample::select(vec!["host/r.git", "host:1/r", "host:r/s#t", "h/_git/r?x=y"]),
        ) {
            // Names are in lower case but for paths, and so is what comes behind the user.
            let name = repository(&format!("{scheme}{user}@{end}")).unwrap_or_default();
            prop_assert!(!name.contains(|c: char| c.is_ascii_uppercase()), "{}", name);
            let known = ["host/r", "host/1/r", "host/r/s", "r/s", "h/_git/r", ""];
            prop_assert!(known.contains(&name.as_str()), "{}", name);
        }
    }

    #[test]
    fn an_image_loses_tag_and_digest_only() {
        assert_eq!(image("Reg:5000/Team/app:v1"), "reg:5000/team/app");
        assert_eq!(image("reg:5000/team/app"), "reg:5000/team/app");
        assert_eq!(image("app@sha256:aa"), "app");
        for name in ["Reg:5000/team/app:v1", "reg.io/team/app", "localhost/team/app", "team/app:2"]
        {
            assert_eq!(image_anywhere(name), "team/app");
        }
    }

    #[test]
    fn what_lies_elsewhere_is_told_from_a_directory() {
        for context in
            ["https://h/x.tar.gz", "git@h:x", "me@h.io:x/y", "ssh://h/x", "github.com/x/y"]
        {
            assert!(is_remote(context), "{context}");
        }
        for context in ["", ".", "input:0-b", "dir@2/x:y", "docker-image://x@sha256:aa", "a:b"] {
            assert!(!is_remote(context), "{context}");
        }
    }

    #[test]
    fn a_subdirectory_stands_in_fragment_or_query() {
        for context in
            ["https://h/r#main:a/b", "https://h/r?ref=main&subdir=a%2Fb", "git@h:r#:/a/b/"]
        {
            assert_eq!(subdirectory(context).as_deref(), Some("a/b"), "{context}");
        }
        for context in
            ["https://h/r", "https://h/r#main", "https://h/r#main:..", "https://h/r?subdir="]
        {
            assert_eq!(subdirectory(context), None, "{context}");
        }
    }

    #[test]
    fn a_path_of_one_machine_is_no_directory() {
        assert_eq!(directory("./services\\a/"), Some("services/a".into()));
        for path in ["", ".", "./", "/agent/_work/1/s", "C:\\agent\\_work\\1\\s", "../../s"] {
            assert_eq!(directory(path), None, "{path}");
        }
    }

    #[test]
    fn a_shared_key_tells_only_if_its_directory_does() {
        assert_eq!(shared_key("billing-api:f135bf9275c4488a"), Some("billing-api".into()));
        for text in ["", "s:f135bf9275c4488a", "1:ab", "workspace:ab", ":ab", "_work/1/s:ab"] {
            assert_eq!(shared_key(text), None, "{text}");
        }
    }
}
