//! The whole platform, used as developers, visitors and the operator use it.

mod stack {
    mod attacks;
    mod bad_input;
    mod deploy;
    mod isolation;
    mod limits;
    mod operator;
    mod resilience;
    mod scale;
    mod usage;
}
