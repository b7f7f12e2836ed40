"""What everything stands on: settings, errors, storage, manifests, and how this process is set up."""
