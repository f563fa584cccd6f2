"""What tests of several rooms share: small random models, scripts run by hand, a hub on this machine, pages read."""
