"""What tests share: small networks, records, runs, kills, faults, mutants and oracles."""
