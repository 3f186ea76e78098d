"""spark-submit --properties-file FILE jobs/import_splits.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import import_splits

if __name__ == "__main__":
    sys.exit(main(import_splits))
