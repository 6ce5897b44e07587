"""What talks to Google Cloud and to the TPU's compiler."""
