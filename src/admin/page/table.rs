//! The cards and tables of the page.

use maud::{Markup, html};

/// The most rows of a table. A browser shows as many without delay, and nobody reads more; `/status.json` has all.
pub(super) const MAX_ROWS: usize = 500;

/// The columns of a table, each with its class: empty, or how the cells of the column are set.
pub(super) type Columns = Vec<(&'static str, &'static str)>;

/// A card with a table of `rows`, or with the sentence `empty` if there are none. `id` names the card in links.
pub(super) fn card(
    (id, title): (&str, &str),
    columns: &Columns,
    rows: &[Markup],
    empty: &str,
) -> Markup {
    let heading = format!("{id}-title");
    html! {
        section.card id=(id) aria-labelledby=(heading) {
            h2 id=(heading) {
                (title)
                @if !rows.is_empty() { span.count { (rows.len()) } }
            }
            @if rows.is_empty() {
                p.empty { (empty) }
            } @else {
                // On a narrow screen the table scrolls by itself, which a keyboard can do only in what has the focus.
                div.scroll tabindex="0" role="group" aria-labelledby=(heading) {
                    table {
                        caption.sr { (title) }
                        thead { tr {
                            @for (name, class) in columns {
                                th scope="col" class=[class_of(class)] { (name) }
                            }
                        } }
                        tbody { @for row in &rows[..rows.len().min(MAX_ROWS)] { (row) } }
                    }
                }
            }
            @if rows.len() > MAX_ROWS {
                p.note { "The first " (MAX_ROWS) " are shown. " a href="/status.json" { "/status.json" } " has all." }
            }
        }
    }
}

fn class_of(class: &'static str) -> Option<&'static str> {
    Some(class).filter(|class| !class.is_empty())
}
