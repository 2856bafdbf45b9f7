"""The parts of the report, one module each: subjects in, a `Section` out, or None where there is nothing to say."""
