//! The tables of flags, metrics and values of the chart are generated from the code. `make tables` writes them into
//! the pages; otherwise the test fails if a page differs.
//!
//! A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
};

use buildkit_lb::{
    admin_client, cli, commands,
    metrics::{Description, Families},
};
use clap::{Arg, Command};

use super::{support::pages::pages, values};

/// Set by `make tables`.
const UPDATE: &str = "BUILDKIT_LB_UPDATE_TABLES";

const START: &str = "<!-- table: ";
const END: &str = "<!-- end of table -->";

/// Every table, by its name.
fn tables() -> BTreeMap<String, String> {
    let command = cli::command();
    let serve = command.find_subcommand("serve").expect("a command");
    let shared: BTreeSet<_> = serve.get_arguments().map(Arg::get_id).collect();
    let mut tables = BTreeMap::from([
        ("commands".to_owned(), command_table(&command)),
        ("flags of serve".to_owned(), flag_tables(serve)),
        ("metrics".to_owned(), metric_table()),
        ("values of the chart".to_owned(), values::table()),
    ]);
    let top = command.find_subcommand("top").expect("a command");
    let drain = command.find_subcommand("drain").expect("a command");
    for (heading, command) in [(admin_client::HEADING, top), (commands::OUTPUT_HEADING, drain)] {
        let under = |arg: &&Arg| arg.get_help_heading() == Some(heading);
        let args: Vec<_> = command.get_arguments().filter(under).collect();
        tables.insert(format!("flags under {heading}"), own_flag_table(&args));
    }
    // The commands of operators share these flags, which have tables of their own.
    let elsewhere = [Some(admin_client::HEADING), Some(commands::OUTPUT_HEADING)];
    for command in command.get_subcommands() {
        let own: Vec<_> = command
            .get_arguments()
            .filter(|arg| !shared.contains(arg.get_id()))
            .filter(|arg| !elsewhere.contains(&arg.get_help_heading()))
            .collect();
        if !own.is_empty() {
            tables.insert(format!("flags of {}", command.get_name()), own_flag_table(&own));
        }
    }
    tables
}

fn command_table(command: &Command) -> String {
    let mut table = "| command | |\n|---|---|\n".to_owned();
    for command in command.get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(table, "| `{}` | {}. |", command.get_name(), prose(&about));
    }
    table
}

/// One table for each heading of `--help`, in its order.
fn flag_tables(command: &Command) -> String {
    let mut headings: Vec<(&str, Vec<&Arg>)> = Vec::new();
    for arg in command.get_arguments() {
        let heading = arg.get_help_heading().unwrap_or("Configuration file");
        match headings.iter_mut().find(|(known, _args)| *known == heading) {
            Some((_heading, args)) => args.push(arg),
            None => headings.push((heading, vec![arg])),
        }
    }
    let table = |(heading, args): &(&str, Vec<&Arg>)| {
        let mut table =
            format!("### {heading}\n\n| flag | environment | default | |\n|---|---|---|---|\n");
        for arg in args {
            let variable = arg.get_env().and_then(|name| name.to_str()).expect("a variable");
            let (help, default) = help(arg);
            let _ = writeln!(table, "| `{}` | `{variable}` | {default} | {help} |", usage(arg));
        }
        table
    };
    headings.iter().map(table).collect::<Vec<_>>().join("\n")
}

fn own_flag_table(args: &[&Arg]) -> String {
    let mut table = "| flag | default | |\n|---|---|---|\n".to_owned();
    for arg in args {
        let (help, default) = help(arg);
        let _ = writeln!(table, "| `{}` | {default} | {help} |", usage(arg));
    }
    table
}

/// `--flag VALUE`, or `NAME` for a positional argument.
fn usage(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default().join(" ");
    match arg.get_long() {
        Some(long) if arg.get_action().takes_values() => format!("--{long} {values}"),
        Some(long) => format!("--{long}"),
        None => values,
    }
}

/// The help text of a flag, and its default: clap's own, or the words in brackets at the end of the text.
fn help(arg: &Arg) -> (String, String) {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
    let help = help.expect("a text").split_whitespace().collect::<Vec<_>>().join(" ");
    let (help, own) = match help.split_once(" [default: ") {
        Some((help, default)) => (help.to_owned(), default.trim_end_matches(']').to_owned()),
        None => (help, String::new()),
    };
    let of_clap = arg.get_default_values().first().and_then(|value| value.to_str());
    let default = of_clap.filter(|_| arg.get_action().takes_values()).unwrap_or(&own);
    let default = match default.split(' ').count() {
        1 if !["", "none"].contains(&default) => format!("`{default}`"),
        _ => prose(default),
    };
    (format!("{}.", prose(&help).trim_end_matches('.')), default)
}

fn metric_table() -> String {
    let mut table = "| metric | type | labels | |\n|---|---|---|---|\n".to_owned();
    for Description { name, kind, labels, help } in Families::descriptions() {
        let labels = labels.iter().map(|(label, values)| {
            let values = values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>();
            let values = values.join(" ");
            if values.is_empty() { format!("`{label}`") } else { format!("`{label}` = {values}") }
        });
        let labels = labels.collect::<Vec<_>>().join(", ");
        let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {}. |", prose(help));
    }
    table
}

/// Plain text as Markdown. Addresses, flags and paths become code.
fn prose(text: &str) -> String {
    let word = |word: &str| {
        let core = word.trim_end_matches([',', '.', ':', ';']);
        let is_code = ["://", "_", "=", "*", "["].iter().any(|mark| core.contains(mark))
            || ["--", "/"].iter().any(|start| core.starts_with(start));
        match is_code {
            true => format!("`{core}`{}", &word[core.len()..]),
            false => word.to_owned(),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The page with all tables replaced, and the names of its tables.
fn with_tables(
    page: &str,
    tables: &BTreeMap<String, String>,
) -> Result<(String, Vec<String>), String> {
    let (mut filled, mut names, mut rest) = (String::new(), Vec::new(), page);
    while let Some((before, after)) = rest.split_once(START) {
        let (name, after) = after.split_once(" -->\n").ok_or("a table has no name")?;
        let table = tables.get(name).ok_or_else(|| format!("there is no table `{name}`"))?;
        let (_old, after) =
            after.split_once(END).ok_or_else(|| format!("the table `{name}` has no end"))?;
        let _ = write!(filled, "{before}{START}{name} -->\n\n{table}\n{END}");
        names.push(name.to_owned());
        rest = after;
    }
    Ok((filled + rest, names))
}

#[test]
fn the_tables_of_the_pages_are_those_of_the_code() {
    let tables = tables();
    let mut written = Vec::new();
    for path in pages() {
        let page = fs::read_to_string(&path).expect("UTF-8");
        let (filled, names) = with_tables(&page, &tables)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        written.extend(names);
        if env::var_os(UPDATE).is_some() {
            fs::write(&path, filled).expect("written");
        } else {
            assert!(filled == page, "{} lags behind the code: run `make tables`", path.display());
        }
    }
    written.sort();
    assert_eq!(written, tables.into_keys().collect::<Vec<_>>(), "each table stands on one page");
}

#[test]
fn a_table_that_lags_is_written_anew_and_the_text_around_it_stays() {
    let tables = BTreeMap::from([("a".to_owned(), "| new |\n".to_owned())]);
    let page = "before\n<!-- table: a -->\n| old |\n<!-- end of table -->\nafter\n";
    let (filled, names) = with_tables(page, &tables).expect("a page");
    let expected = "before\n<!-- table: a -->\n\n| new |\n\n<!-- end of table -->\nafter\n";
    assert_eq!((filled.as_str(), names), (expected, vec!["a".to_owned()]));
    assert_eq!(with_tables(expected, &tables).expect("a page").0, expected);
    for (page, error) in [
        ("<!-- table: b -->\n<!-- end of table -->", "there is no table `b`"),
        ("<!-- table: a -->\n", "the table `a` has no end"),
    ] {
        assert_eq!(with_tables(page, &tables).expect_err("no page"), error);
    }
}

#[test]
fn every_flag_has_a_heading_a_variable_and_a_row() {
    let command = cli::command();
    let serve = command.find_subcommand("serve").expect("a command");
    let table = flag_tables(serve);
    for arg in serve.get_arguments() {
        let long = arg.get_long().expect("a flag");
        let variable = format!("BUILDKIT_LB_{}", long.replace('-', "_").to_uppercase());
        assert!(table.contains(&format!("| `--{long} ")), "{long} has no row");
        assert!(table.contains(&format!("| `{variable}` |")), "{long} has no variable");
        assert!(long == "config" || arg.get_help_heading().is_some(), "{long} has no heading");
    }
}
