"""spark-submit --properties-file FILE jobs/maintain.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import maintain

if __name__ == "__main__":
    sys.exit(main(maintain))
