//! The pages are correct: commands are valid shell, links lead somewhere, tables match the code, and the list of
//! dependencies matches the build.

mod blocks;
mod dependencies;
mod errors;
mod links;
#[path = "../support/mod.rs"]
mod support;
mod tables;
mod values;
