//! The scripts: loaded with each connection, called by their hash.

use std::sync::LazyLock;

use redis::ServerError;

macro_rules! scripts {
    ($($name:ident = $file:literal;)+) => {
        /// A script by its place in [`all`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Script { $($name,)+ }

        static ALL: LazyLock<Vec<Source>> = LazyLock::new(|| vec![
            $(Source::new(include_str!(concat!("../scripts/", $file))),)+
        ]);
    };
}

scripts! {
    Account = "account.lua";
    Append = "append.lua";
    Beat = "beat.lua";
    Bury = "bury.lua";
    Cancel = "cancel.lua";
    Claim = "claim.lua";
    Copy = "copy.lua";
    Create = "create.lua";
    Delete = "delete.lua";
    Enter = "enter.lua";
    Hold = "hold.lua";
    Put = "put.lua";
    Read = "read.lua";
    Requests = "requests.lua";
    Settle = "settle.lua";
    Shrink = "shrink.lua";
    Stats = "stats.lua";
    Sweep = "sweep.lua";
    Update = "update.lua";
}

const COMMON: &str = include_str!("../scripts/common.lua");

/// What the server gets.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) hash: String,
}

impl Source {
    fn new(script: &str) -> Self {
        let text = with_parts(script);
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }
}

/// Names of what a part of the common script defines.
fn defined(part: &str) -> impl Iterator<Item = &str> {
    part.lines().filter_map(|line| {
        let rest = line.strip_prefix("local ")?;
        let rest = rest.strip_prefix("function ").unwrap_or(rest);
        rest.split(|char: char| !is_word(char)).next()
    })
}

fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// The script and the parts that it needs, which a server would else make anew
/// for each call: they come before what needs them.
fn with_parts(script: &str) -> String {
    let parts: Vec<_> = COMMON.split("\n\n").collect();
    let mut needed = vec![false; parts.len()];
    let mut text = script.to_owned();
    // A part names only parts before it.
    for (index, part) in parts.iter().enumerate().rev() {
        let mut words = text.split(|char: char| !is_word(char));
        if defined(part).any(|name| words.any(|word| word == name)) {
            needed[index] = true;
            text.push('\n');
            text.push_str(part);
        }
    }
    let parts = parts.iter().zip(needed);
    let mut text: String = parts
        .filter(|(_, needed)| *needed)
        .flat_map(|(part, _)| [*part, "\n"])
        .collect();
    text.push_str(script);
    text
}

/// All scripts.
pub(crate) fn all() -> &'static [Source] {
    &ALL
}

/// The command at which a script has failed because the user may not run it. The
/// server tells the line only.
pub(crate) fn denied(refused: &ServerError) -> Option<&'static str> {
    let details = refused.details()?;
    let (said, place) = details.split_once(" script: ")?;
    if !said.contains("can't run this command") {
        return None;
    }
    let (hash, line) = place.split_once(", on @user_script:")?;
    let line: usize = line.trim_end_matches('.').parse().ok()?;
    let source = all().iter().find(|source| source.hash == hash)?;
    let (_, call) = source.text.lines().nth(line - 1)?.split_once("call('")?;
    call.split('\'').next()
}

impl Script {
    pub(crate) fn source(self) -> &'static Source {
        &ALL[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_have_the_parts_that_they_name_and_no_others() {
        let requests = &Script::Requests.source().text;
        assert!(requests.contains("local function load("));
        assert!(!requests.contains("local function evict("));
        let append = &Script::Append.source().text;
        let place = |name: &str| append.find(name).unwrap();
        assert!(place("local function parse(") < place("local function span("));
        assert!(place("local function span(") < place("local function evict("));
        for part in COMMON.split("\n\n").skip(1) {
            assert_eq!(defined(part).count(), 1, "one name in each part: {part}");
        }
    }
}
