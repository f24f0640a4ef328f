//! The settings of the command line and of the environment, and the defaults, as tables.

use std::{collections::BTreeMap, ffi::OsStr};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
    parser::ValueSource,
};
use toml::{Table, Value};

use super::{AdminAccess, Pool, Process, tls::TlsSettings};

/// The name of each variable begins with this.
const PREFIX: &str = "BUILDKIT_LB_";

/// The settings of the command line and of the environment, and the defaults, each as the file would write them.
#[derive(Debug, Default, Clone)]
pub struct Given {
    /// The defaults that depend on nothing else.
    pub(super) defaults: Table,
    pub(super) environment: Table,
    pub(super) flags: Table,
    /// The flag or variable that gave a key.
    pub(super) origins: BTreeMap<String, String>,
}

/// The flags of all settings, from the fields of their sections.
fn flags() -> Vec<Arg> {
    let command = Pool::augment_args(Command::new("settings"));
    let command = Process::augment_args(TlsSettings::augment_args(command));
    let command = AdminAccess::augment_args(command);
    command.get_arguments().cloned().map(flag).collect()
}

/// The flag of a field, with its variable.
fn flag(field: Arg) -> Arg {
    let variable = format!("{PREFIX}{}", field.get_id().as_str().to_uppercase());
    let words = field.get_value_parser().possible_values().into_iter().flatten().collect();
    let flag = field.env(variable).value_parser(AnyText { words });
    match flag.get_action() {
        ArgAction::Append => flag.value_delimiter(','),
        // A switch may have a value, so that a flag can turn off what the file turns on.
        ArgAction::SetTrue => {
            let default = flag.get_default_values().first().cloned();
            flag.action(ArgAction::Set)
                .num_args(0..=1)
                .value_name("BOOL")
                .default_missing_value("true")
                .default_value(default.unwrap_or("false".into()))
        }
        // The help text names the words already.
        _ => flag.hide_possible_values(true),
    }
}

/// Takes any text. What is wrong with the text is found later, together with every other problem.
#[derive(Debug, Clone)]
struct AnyText {
    /// The words that a shell proposes.
    words: Vec<PossibleValue>,
}

impl TypedValueParser for AnyText {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        flag: Option<&Arg>,
        text: &OsStr,
    ) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, flag, text)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        (!self.words.is_empty()).then(|| Box::new(self.words.iter().cloned()) as _)
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        command.args(flags())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Self { defaults: defaults(), ..Self::default() };
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for flag in flags() {
            let long = flag.get_long().unwrap_or_default().to_owned();
            let (layer, origin) = match matches.value_source(flag.get_id().as_str()) {
                Some(ValueSource::CommandLine) => (&mut self.flags, format!("--{long}")),
                Some(ValueSource::EnvVariable) => {
                    let variable = flag.get_env().unwrap_or_default().to_string_lossy();
                    (&mut self.environment, variable.into_owned())
                }
                _ => continue,
            };
            let given = matches.get_raw(flag.get_id().as_str()).into_iter().flatten();
            layer.extend(value(&flag, given).map(|value| (long.clone(), value)));
            self.origins.insert(long, origin);
        }
        Ok(())
    }
}

/// The defaults that depend on nothing else.
fn defaults() -> Table {
    let default = |flag: &Arg| {
        let texts = flag.get_default_values().iter().map(AsRef::as_ref);
        Some((flag.get_long()?.to_owned(), value(flag, texts)?))
    };
    flags().iter().filter_map(default).collect()
}

/// The value of `texts` for `flag`: a list if the flag can be repeated, a boolean if the flag needs no value.
fn value<'a>(flag: &Arg, texts: impl Iterator<Item = &'a OsStr>) -> Option<Value> {
    let texts: Vec<_> = texts.map(|text| text.to_string_lossy().into_owned()).collect();
    let text = texts.last()?.clone();
    if matches!(flag.get_action(), ArgAction::Append) {
        return Some(texts.into());
    }
    let is_switch = flag.get_num_args().is_some_and(|values| values.min_values() == 0);
    match text.parse::<bool>() {
        Ok(boolean) if is_switch => Some(boolean.into()),
        _ => Some(text.into()),
    }
}
