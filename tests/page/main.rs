//! The page of the admin port: what it answers, and what a person sees in a real browser while real daemons build.

mod answers;
mod browser;
mod looks;
mod shown;
#[path = "../support/mod.rs"]
mod support;
