//! Figures as a table and as JSON.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use crate::measure::{Figure, Goal};

/// One row a figure.
pub(crate) fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["goal", "value", "reference", "ratio", "wanted", ""]);
    for figure in figures {
        table.add_row(match &figure.error {
            Some(error) => [
                figure.name.clone(),
                error.clone(),
                String::new(),
                String::new(),
                String::new(),
                "✗".to_owned(),
            ],
            None => row(figure),
        });
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(figure: &Figure) -> [String; 6] {
    let wanted = match figure.goal {
        Goal::TimesReference(least) => format!("≥ {least} ×"),
        Goal::WithinReference(most) => format!("≤ {most} ×"),
        Goal::AtMost(most) => format!("≤ {most} {}", figure.unit),
        Goal::Stated => String::new(),
    };
    [
        figure.name.clone(),
        format!("{} {}", number(figure.value), figure.unit),
        figure.reference.map(number).unwrap_or_default(),
        figure
            .ratio()
            .map(|ratio| format!("{ratio:.2}"))
            .unwrap_or_default(),
        wanted,
        if figure.ok() { "✓" } else { "✗" }.to_owned(),
    ]
}

/// Whole thousands apart, small numbers with two places.
fn number(value: f64) -> String {
    if value.abs() < 1_000.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(String::from_utf8_lossy)
        .collect();
    groups.join(",")
}

/// One object, the names of the goals as keys.
pub(crate) fn json(figures: &[Figure]) -> Result<String> {
    let entries = figures
        .iter()
        .map(|figure| (figure.name.clone(), entry(figure)));
    Ok(serde_json::to_string_pretty(
        &entries.collect::<Map<_, _>>(),
    )?)
}

fn entry(figure: &Figure) -> Value {
    if let Some(error) = &figure.error {
        return json!({ "ok": false, "error": error });
    }
    let goal = match figure.goal {
        Goal::TimesReference(goal) | Goal::WithinReference(goal) | Goal::AtMost(goal) => Some(goal),
        Goal::Stated => None,
    };
    json!({
        "value": figure.value,
        "unit": figure.unit,
        "reference": figure.reference,
        "ratio": figure.ratio(),
        "goal": goal,
        "ok": figure.ok(),
    })
}
