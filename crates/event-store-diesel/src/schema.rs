//! The tables as Diesel sees them; the migrations define them.

use diesel::table;

table! {
    de_format (version) {
        application -> Text,
        version -> BigInt,
    }
}

table! {
    de_event_types (type_key) {
        type_key -> BigInt,
        event_type -> Text,
    }
}

table! {
    de_aggregates (aggregate_key) {
        aggregate_key -> BigInt,
        aggregate_type -> Text,
        aggregate_id -> Text,
        head_version -> BigInt,
    }
}

table! {
    de_events (position) {
        position -> BigInt,
        event_id -> Binary,
        type_key -> BigInt,
        aggregate_key -> BigInt,
        version -> BigInt,
        schema_version -> BigInt,
        urgency -> BigInt,
        payload -> Binary,
        metadata -> Nullable<Text>,
        correlation_id -> Binary,
        causation_id -> Nullable<Binary>,
        occurred_at -> BigInt,
        recorded_at -> BigInt,
        checksum -> BigInt,
    }
}

table! {
    /// The events as they may be found: a damaged row can hold anything, and is read all the same.
    #[sql_name = "de_events"]
    found_events (position) {
        position -> BigInt,
        event_id -> Nullable<Binary>,
        type_key -> Nullable<BigInt>,
        aggregate_key -> Nullable<BigInt>,
        version -> Nullable<BigInt>,
        schema_version -> Nullable<BigInt>,
        urgency -> Nullable<BigInt>,
        payload -> Nullable<Binary>,
        metadata -> Nullable<Binary>,
        correlation_id -> Nullable<Binary>,
        causation_id -> Nullable<Binary>,
        occurred_at -> Nullable<BigInt>,
        recorded_at -> Nullable<BigInt>,
        checksum -> Nullable<BigInt>,
    }
}

table! {
    de_subscriptions (subscription_id) {
        subscription_id -> BigInt,
        name -> Text,
        through -> BigInt,
        unfinished -> Binary,
        paused -> Nullable<Text>,
        version -> Nullable<BigInt>,
    }
}

table! {
    de_guard (nobody) {
        nobody -> BigInt,
    }
}

table! {
    de_waiting (subscription_id, position) {
        subscription_id -> BigInt,
        position -> BigInt,
        aggregate_key -> BigInt,
        attempts -> BigInt,
        first_attempt_at -> BigInt,
        due_at -> BigInt,
        last_error -> Text,
        is_replay -> Bool,
    }
}

table! {
    de_blocked (subscription_id, aggregate_key) {
        subscription_id -> BigInt,
        aggregate_key -> BigInt,
        from_position -> BigInt,
        from_version -> BigInt,
        parked_behind -> Nullable<Binary>,
    }
}

table! {
    de_started (subscription_id, position) {
        subscription_id -> BigInt,
        position -> BigInt,
        unclean_ends -> BigInt,
        is_running -> Bool,
    }
}

table! {
    de_dead_letters (dead_letter_id) {
        dead_letter_id -> BigInt,
        subscription_id -> BigInt,
        position -> BigInt,
        reason -> Text,
        attempts -> BigInt,
        error -> Text,
        first_attempt_at -> BigInt,
        dead_at -> BigInt,
        settled_at -> Nullable<BigInt>,
        settled_as -> Nullable<Text>,
        note -> Nullable<Text>,
    }
}

table! {
    de_processing (processing_id) {
        processing_id -> BigInt,
        subscription -> Text,
        event_id -> Binary,
        position -> BigInt,
        attempt -> BigInt,
        result -> Text,
        note -> Nullable<Text>,
        ended_at -> BigInt,
        took -> BigInt,
    }
}

table! {
    de_runs (run_id) {
        run_id -> BigInt,
        started_at -> BigInt,
        ended_at -> Nullable<BigInt>,
        repeats_through -> BigInt,
    }
}

table! {
    /// One row, without a key.
    de_retention (pruned_through) {
        pruned_through -> BigInt,
    }
}

table! {
    /// SQLite's own note of the greatest number that an AUTOINCREMENT table has seen.
    sqlite_sequence (name) {
        name -> Text,
        seq -> BigInt,
    }
}

table! {
    sqlite_master (name) {
        name -> Text,
        #[sql_name = "type"]
        kind -> Text,
        #[sql_name = "sql"]
        definition -> Nullable<Text>,
    }
}

diesel::joinable!(de_dead_letters -> de_subscriptions (subscription_id));
diesel::allow_tables_to_appear_in_same_query!(de_dead_letters, de_events, de_subscriptions);
diesel::allow_tables_to_appear_in_same_query!(de_blocked, found_events);
diesel::allow_columns_to_appear_in_same_group_by_clause!(
    de_subscriptions::name,
    de_dead_letters::error
);
diesel::allow_tables_to_appear_in_same_query!(de_blocked, de_events);
diesel::allow_tables_to_appear_in_same_query!(de_events, de_waiting);
diesel::allow_tables_to_appear_in_same_query!(de_events, de_started);
