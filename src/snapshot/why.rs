//! Why a build is on its backend, as a sentence for people.

/// Why a build is on its backend: from the `outcome` of its placement, the home of its key if the build is elsewhere,
/// and what that `home_is`.
pub fn why(outcome: &str, home: Option<&str>, home_is: Option<&str>) -> String {
    let home = home.unwrap_or("the home of its key");
    let obstacle = home_is.map_or("takes no more builds", obstacle);
    match outcome {
        "home" => "This backend is the home of its key.".to_owned(),
        "warm" => format!("This backend built its key last, and {home} is new in the fleet."),
        "spill" => format!("The home of its key, {home}, {obstacle}."),
        "failover" if home_is.is_some() => format!("The home of its key, {home}, {obstacle}."),
        "failover" => "The backend that was chosen first did not accept a connection.".to_owned(),
        "pinned" => "A session or build that it belongs with is on this backend.".to_owned(),
        "balanced" => {
            "The backend was chosen by load or at random, because no key decides.".to_owned()
        }
        other => format!("The outcome of its placement is {other}."),
    }
}

/// What keeps a build from the home of its key, as the end of a sentence.
fn obstacle(home_is: &str) -> &str {
    match home_is {
        "full" => "runs as many builds as its limit allows",
        "busy" => "keeps its last room for builds that find their cache there",
        "unhealthy" => "is unhealthy",
        "degraded" => "is degraded",
        "cordoned" => "is cordoned",
        "unreachable" => "did not accept a connection",
        _ => "takes no more builds",
    }
}
