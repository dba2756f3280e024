"""The published latent table: layout, publication, data contract and reader."""
