//! Lines of the log: what they are about stands in the text, for whoever reads it, and once more as
//! fields, for whoever searches it.

/// Logs `what`, the fields, and a text that follows them, if there is one. Not under the lock of the
/// bus, as a logger is the user's; and so its panic is not ours.
macro_rules! say {
    ($level:ident, $what:literal, $($field:literal = $value:expr),+ $(; $text:expr)?) => {
        $crate::engine::contain(|| ::log::$level!(
            $($field:% = $value),+;
            "{}{}",
            format_args!(concat!($what, ":" $(, " ", $field, "={}")+), $($value),+),
            $crate::say::say!(@text $($text)?)
        ))
    };
    (@text) => { "" };
    (@text $text:expr) => { format_args!(": {}", $text) };
}

pub(crate) use say;
