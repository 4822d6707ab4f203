-- Takes away what is known of deliveries; the log stays.
DROP TABLE de_runs;
DROP TABLE de_dead_letters;
DROP TABLE de_blocked;
DROP TABLE de_waiting;
DROP TABLE de_subscriptions;
